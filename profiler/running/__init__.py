"""Runs that survive: a process for each scenario, and what goes on when one of them ends
otherwise.
"""
