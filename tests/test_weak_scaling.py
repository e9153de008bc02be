"""The race of Ray workers: teams take turns, cells grow with workers, the table divides."""

import pytest

from robust_nc.benchmarks.races import weak_scaling
from robust_nc.benchmarks.races.weak_scaling import Team, cells, contest, table
from robust_nc.engines.run_suite import SuiteReport
from robust_nc.exceptions import ConfigError

TEAMS = [Team(1), Team(2), Team(4), Team(None)]
SECONDS = {Team(1): 10.0, Team(2): 10.0, Team(4): 20.0, Team(None): 8.0}


def test_teams_take_turns_and_the_first_changes():
    order = []
    timings = contest(TEAMS, 2, measure=lambda team: order.append(team) or SECONDS[team])
    assert order == [*TEAMS, *TEAMS[1:], TEAMS[0]]
    assert [timing.seconds for timing in timings] == [(SECONDS[team],) * 2 for team in TEAMS]


def test_efficiency_is_the_time_of_one_over_that_of_many_beside_what_cores_allow():
    timings = contest(TEAMS, 1, measure=SECONDS.__getitem__)
    shown = table(TEAMS, timings, per_worker=3, cores=2).splitlines()
    rows = [[part.strip() for part in line.split("|")[1:-1]] for line in shown]
    found = {row[0]: (row[1], row[4].split()[0], row[5]) for row in rows[2:]}
    assert found == {
        "Ray, 1": ("3", "1.00", "1.00"),
        "Ray, 2": ("6", "1.00", "1.00"),
        "Ray, 4": ("12", "0.50", "0.50"),
        weak_scaling.LOCAL: ("3", "1.25", "1.00"),
    }


def test_cells_differ_in_their_seeds_alone(tmp_path):
    suite, warm = cells(tmp_path, 3, epochs=1), cells(tmp_path, 2, epochs=1, first_seed=3)
    assert [cell.config.seed for cell in (*suite.cells, *warm.cells)] == [0, 1, 2, 3, 4]
    assert len({cell.model for cell in suite.cells}) == 1
    assert len({cell.id for cell in (*suite.cells, *warm.cells)}) == 5


def test_a_cell_that_fails_ends_the_race(tmp_path, monkeypatch):
    report = SuiteReport(0, (), {"00ff": "the disk is full"}, ())
    monkeypatch.setattr(weak_scaling, "run_suite", lambda *given, **options: report)
    with pytest.raises(ConfigError, match="the disk is full"):
        weak_scaling.timed(Team(None), per_worker=1, epochs=1)


def test_the_clock_starts_when_the_workers_are_there(monkeypatch):
    runs = []

    def run_suite(suite, out, *, hooks, workers, cluster):
        runs.append((len(suite.cells), workers, cluster))
        return SuiteReport(0, (), {}, ())

    monkeypatch.setattr(weak_scaling, "run_suite", run_suite)
    assert weak_scaling.timed(Team(None), per_worker=3, epochs=1) < 60
    assert runs == [(1, 1, None), (3, 1, None)]


@pytest.mark.parametrize("options", [{"workers": (0,)}, {"rounds": 0}, {"per_worker": 0}])
def test_sizes_below_one_are_refused(options):
    with pytest.raises(SystemExit, match="at least 1"):
        weak_scaling.main(**options)
