"""The collapse radius against the oracle, its interval, and what is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import radius as oracle

from robust_nc.exceptions import InputError
from robust_nc.geometry.radius import Radius, collapse_radius

EPS = [0.0, 1.0, 2.0, 4.0]


def at(rates: list[float], *, eps: list[float] = EPS, level: float = 0.1) -> Radius:
    """The radius of rates that are known exactly."""
    return collapse_radius(eps, rates, lower=rates, upper=rates, level=level)


@pytest.mark.parametrize(
    ("rates", "value"),
    [
        ([0.0, 0.0, 0.2, 1.0], 1.5),
        ([0.0, 0.1, 0.2, 1.0], 1.0),
        ([0.0, 0.0, 0.0, 0.1], 4.0),
        ([0.0, 0.3, 0.0, 1.0], 1 / 3),
        ([0.1, 0.3, 0.5, 1.0], 0.0),
        ([0.0, 0.0, 0.0, 0.0999], None),
    ],
)
def test_the_radius_is_the_first_crossing(rates: list[float], value: float | None) -> None:
    found = at(rates)
    assert found.value == found.low == found.high == pytest.approx(value)
    assert found.eps_max == 4


def test_a_note_says_what_the_value_does_not() -> None:
    assert at([0.0, 0.0, 0.2, 1.0]).note == ""
    assert at([0.0, 0.0, 0.0, 0.05]).note == "> 4: the leap rate stays below 0.1"
    assert at([0.25, 0.3, 0.5, 1.0]).note == "the leap rate is 0.25 already on the clean data"
    late = at([0.25, 0.3], eps=[0.5, 1.0])
    assert late.value == 0.5
    assert late.note == "the leap rate is 0.25 already at the smallest eps, 0.5"
    assert "falls below 0.1 again" in at([0.0, 0.3, 0.0, 1.0]).note


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(1, 9), st.sampled_from([0.05, 0.1, 0.5, 1.0]))
def test_radii_agree_with_the_oracle(seed: int, count: int, level: float) -> None:
    generator = np.random.default_rng(seed)
    eps = np.cumsum(generator.uniform(0.1, 1, count)) - 0.1
    rates = np.sort(generator.uniform(0, 1.1, count)).clip(0, 1)
    rates += generator.normal(0, 0.05, count)
    rates = rates.clip(0, 1)
    lower, upper = (rates - generator.uniform(0, 0.2, count)).clip(0), (rates + 0.1).clip(0, 1)
    found = collapse_radius(eps, rates, lower=lower, upper=upper, level=level)
    for value, curve in ((found.value, rates), (found.low, upper), (found.high, lower)):
        wanted = oracle.crossing(eps.tolist(), curve.tolist(), level)
        assert value == (None if wanted is None else pytest.approx(wanted, abs=1e-4))
    ends = [np.inf if end is None else end for end in (found.low, found.value, found.high)]
    assert ends == sorted(ends)
    scaled = collapse_radius(255 * eps, torch.tensor(rates), lower=lower, upper=upper, level=level)
    assert scaled.value == (None if found.value is None else pytest.approx(255 * found.value))
    between = np.linspace(eps[0], eps[-1], 4 * count - 3 if count > 1 else 1)
    knots = np.union1d(between, eps)
    finer = at(np.interp(knots, eps, rates).tolist(), eps=knots.tolist(), level=level)
    assert finer.value == (None if found.value is None else pytest.approx(found.value))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eps": [0, 2, 1]}, "ascend without repeats, found 2.0 before 1.0"),
        ({"eps": [0, 1, 1]}, "ascend without repeats, found 1.0 before 1.0"),
        ({"eps": [-1, 1, 2]}, "0 or more, found -1.0"),
        ({"eps": [0, 1, np.nan]}, "eps must be finite"),
        ({"eps": []}, "eps is empty"),
        ({"eps": [0, 1]}, "found 3 for 2 eps"),
        ({"eps": [[0, 1, 2]]}, "one number per radius"),
        ({"rates": [0, 0.1]}, "rates must have one value per eps"),
        ({"rates": [0, 0.1, np.inf]}, "rates must be finite"),
        ({"rates": [0, 0.1, None]}, "rates must be numbers"),
        ({"rates": [0, 10, 20]}, r"rates must be in \[0, 1\], found 0.0 to 20.0"),
        ({"lower": [0, 0.2, 0.4]}, "found 0.2 <= 0.1 <= 0.5 at eps 1.0"),
        ({"upper": [0, 0.2, 0.2]}, "found 0.2 <= 0.3 <= 0.2 at eps 2.0"),
        ({"lower": [0, 0, -1]}, "lower must be in"),
        ({"upper": [1]}, "upper must have one value per eps"),
        ({"level": 0}, "level must be in"),
        ({"level": 1.5}, "level must be in"),
    ],
)
def test_bad_input_is_answered_in_one_sentence(changes: dict[str, object], message: str) -> None:
    usual = {"eps": [0, 1, 2], "rates": [0, 0.1, 0.3], "lower": [0, 0, 0.2], "upper": [1, 0.5, 0.4]}
    given = usual | changes
    with pytest.raises(InputError, match=message):
        collapse_radius(given.pop("eps"), given.pop("rates"), **given)
