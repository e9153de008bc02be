"""The grid of measures of one model: conditions, taps, accumulators, rows."""

from robust_nc.profiling.profile_model import Profile, profile

__all__ = ["Profile", "profile"]
