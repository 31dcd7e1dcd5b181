"""Benchmarks: `python -m bench SCENARIO`. What is measured, on what, and beside what, is part of every report."""
