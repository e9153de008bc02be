"""The race of Ray workers, on a cluster of one."""

import pytest

from robust_nc.benchmarks.races import weak_scaling
from robust_nc.benchmarks.races.weak_scaling import Team


@pytest.mark.cluster
def test_a_team_of_ray_workers_makes_its_cells(monkeypatch):
    pytest.importorskip("ray")
    asked, run_suite = [], weak_scaling.run_suite

    def noted(suite, out, **options):
        asked.append((len(suite.cells), options["cluster"].slots))
        return run_suite(suite, out, **options)

    monkeypatch.setattr(weak_scaling, "run_suite", noted)
    assert weak_scaling.timed(Team(1), per_worker=2, epochs=1) > 0
    assert asked == [(1, 1), (2, 1)]
