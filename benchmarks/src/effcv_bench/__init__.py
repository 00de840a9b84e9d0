"""Bench harness: finds the cases that installed packages announce, runs, stores and shows them."""

__version__ = "0.1.0"
