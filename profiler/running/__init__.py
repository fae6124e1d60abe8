"""Runs: a process for each scenario, and a run that survives the end of any of them."""
