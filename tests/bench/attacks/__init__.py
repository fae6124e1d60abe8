"""Attacks on optprof, which count attempts and faults; `reliability.py` runs them."""
