"""Intervals, paired tests and bounds of samples: what a number may be said to show."""
