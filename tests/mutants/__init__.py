"""Faults that the tests must see: `python -m tests.mutants [--only ROOM]` prints the kill rate."""
