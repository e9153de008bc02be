"""Claims of the literature, fixed before a run and answered with numbers after it."""
