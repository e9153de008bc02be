"""Schedules against closed forms."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robust_nc.config import Component, build
from robust_nc.exceptions import ConfigError
from robust_nc.registry import SCHEDULES
from robust_nc.training.schedule import Constant, Cosine, OneCycle, Piecewise

PROGRESS = st.floats(0, 1, exclude_max=True)


@settings(deadline=None, max_examples=25)
@given(PROGRESS, st.floats(1e-3, 10))
def test_every_schedule_is_between_nothing_and_the_base_rate(progress, base):
    for name in SCHEDULES.names():
        schedule = build(SCHEDULES, Component(name=name))
        assert 0 <= schedule.lr_at(progress, base, epochs=10) <= base * (1 + 1e-12)


@settings(deadline=None, max_examples=25)
@given(PROGRESS)
def test_cosine_is_half_a_cosine(progress):
    wanted = 0.1 * (1 + math.cos(math.pi * progress)) / 2
    assert Cosine().lr_at(progress, 0.1, epochs=1) == pytest.approx(wanted)
    assert Constant().lr_at(progress, 0.1, epochs=1) == 0.1


def test_cosine_warms_up_linearly_and_ends_at_its_final_share():
    schedule = Cosine(warmup=0.2, final=0.1)
    found = [schedule.lr_at(p, 1.0, epochs=1) for p in (0.0, 0.1, 0.2, 0.6, 1.0)]
    assert found == pytest.approx([0, 0.5, 1, 0.55, 0.1])


def test_one_cycle_is_that_of_torch():
    steps = 4001
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    oracle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.1, total_steps=steps, pct_start=0.3, div_factor=25
    )
    optimizer.step()
    schedule = OneCycle(peak=0.3, start=1 / 25, final=1 / 25 / 1e4)
    for step in range(steps - 1):
        # torch counts to the last step, this schedule to the end of it.
        found = schedule.lr_at(step / (steps - 1), 0.1, epochs=1)
        assert found == pytest.approx(oracle.get_last_lr()[0], abs=1e-4)
        oracle.step()


@pytest.mark.parametrize("steps_per_epoch", [1, 3, 7, 391])
def test_piecewise_drops_on_the_first_step_of_its_epochs(steps_per_epoch):
    epochs = 400
    total = epochs * steps_per_epoch
    schedule = Piecewise(milestones=(100.0, 150.0))
    for epoch, wanted in [(100, 0.1), (150, 0.01)]:
        first = epoch * steps_per_epoch
        at = [schedule.lr_at(step / total, 1.0, epochs=epochs) for step in (first - 1, first)]
        assert at == pytest.approx([wanted * 10, wanted])


def test_piecewise_takes_shares_and_epochs():
    shares, in_epochs = Piecewise(milestones=(0.25, 0.5)), Piecewise(milestones=(5.0, 10.0))
    for step in range(100):
        progress = step / 100
        found = shares.lr_at(progress, 1.0, epochs=20)
        assert found == in_epochs.lr_at(progress, 1.0, epochs=20)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("piecewise", {"milestones": [0.0]}),
        ("piecewise", {"factor": 0.0}),
        ("cosine", {"warmup": 1.0}),
        ("one_cycle", {"peak": -0.1}),
        ("one_cycle", {"top": 0.1}),
    ],
)
def test_wrong_options_are_refused(name, options):
    with pytest.raises(ConfigError):
        build(SCHEDULES, Component(name=name, options=options))


def test_milestones_come_from_a_table():
    part = Component(name="piecewise", options={"milestones": [100, 0.5]})
    assert build(SCHEDULES, part) == Piecewise(milestones=(100.0, 0.5))
