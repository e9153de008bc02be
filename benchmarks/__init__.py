"""Suites (`*.toml`), races against peers, GPU scripts. Import as `robust_nc.benchmarks`."""

if __name__ != "robust_nc.benchmarks":
    raise ImportError("import robust_nc.benchmarks, not benchmarks")
