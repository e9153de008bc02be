"""Normalise -> backbone -> head, with named taps."""
