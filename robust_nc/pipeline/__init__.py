"""From a cell of a suite, or a finished model, to a record."""
