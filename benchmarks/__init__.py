"""Suites (`*.toml`). Import as `robust_nc.benchmarks`.

Races against peers (`races`) and the GPU script (`gpu`) are in a clone only, not in the wheel.
"""

if __name__ != "robust_nc.benchmarks":
    raise ImportError("import robust_nc.benchmarks, not benchmarks")
