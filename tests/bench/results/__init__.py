"""The parts of tests/bench/optimizer_table.py: names, checks, rows and pages."""
