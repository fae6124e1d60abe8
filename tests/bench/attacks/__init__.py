"""Attacks on optprof, each a count of what was tried and of what it broke; `reliability.py` runs
them.
"""
