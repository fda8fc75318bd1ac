"""Mutants made by operators that pass all tests, and why they are no mistakes. gate.py checks the list."""

SURVIVORS = {}
