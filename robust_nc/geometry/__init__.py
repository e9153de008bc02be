"""Collapse, leaps and their null models, from streaming sums."""
