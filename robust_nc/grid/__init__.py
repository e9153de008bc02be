"""The grid of measures of one model: conditions, taps, groupings, splits, as rows."""
