"""Suites on a Ray cluster: cells side by side, parts of them on many machines, lost ones redone."""
