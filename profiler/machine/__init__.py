"""Describe this machine: its versions, its memory and its devices."""
