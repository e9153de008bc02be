"""Quantities of claims, read from planted rows."""

import math
from typing import Any

import pytest
from helpers_report import PLACE, curve, quantity_rows

from robust_nc.claims.quantities import QUANTITIES, UndefinedError, meaning, quantity_value
from robust_nc.config import Component, component
from robust_nc.exceptions import ConfigError, RecordError
from robust_nc.record import tidy


def value(name: str, *, without: str = "", changes: dict[str, Any] | None = None, **options: Any):
    rows = [row for row in quantity_rows(**(changes or {})) if row["measure"] != without]
    return quantity_value(Component(name=name, options=options), tidy(rows))


@pytest.mark.parametrize(
    ("name", "options", "wanted"),
    [
        ("kept_collapse", {}, 1 / 3),
        ("landed", {}, 0.2),
        ("landed", {"condition": "gaussian"}, 0.7),
        ("nc1_clean", {}, -2.0),
        ("nc1_log10", {"tap": "block2"}, math.log10(97)),
        ("nc1_log10", {"split": "test"}, math.log10(98)),
        ("nc1_clean", {"feature": "flatten"}, math.log10(96)),
        ("nc1_attacked", {}, math.log10(50)),
        ("nc1_landed", {}, 0.0),
        ("train_accuracy", {}, 1.0),
        ("ncc_adaptive", {"tap": "block1"}, 0.6),
        ("vertex_over_network", {}, 0.0),
        ("early_over_late", {}, 0.1),
        ("early_over_late", {"early": "block1"}, 0.1),
        ("early_over_late", {"feature": "flatten"}, 0.1),
        ("clean_verdict", {}, 0.9),
        ("clean_verdict", {"weights": "last"}, 0.8),
        ("robust_verdict", {}, 0.5),
        ("robust_verdict", {"weights": "last"}, 0.4),
        ("robust_verdict", {"protocol": "pgd_ce"}, 0.58),
        ("flattery", {}, 0.08),
        ("accuracy", {}, 0.91),
        ("accuracy", {"split": "train"}, 1.0),
        ("mistake_severity", {}, 1.5),
        ("mistake_severity", {"condition": "severest"}, 2.5),
        ("hd", {}, 0.2),
        ("hd", {"k": 5}, 1.2),
        ("leap_severity", {}, 1.8),
        ("wrong_over_right", {}, 0.1),
        ("wrong_over_right", {"which": "wrong"}, 0.3),
        ("fall_over_depth", {"last": "layer4"}, -2.0),
        ("fall_over_depth", {}, -1.0),
        ("feature_correlation", {}, 0.6),
        ("feature_correlation", {"centred": True}, 0.1),
        ("feature_correlation", {"root": False}, 0.9),
        ("epochs_to", {"accuracy": 0.9}, 2.0),
        ("epochs_to", {"accuracy": 0.95}, 4.0),
        ("memorised", {}, 0.9),
        ("memorised_way", {}, 0.6),
        ("dilation_log10", {}, 1.0),
        ("dilation_with_memorization", {}, 1.0),
    ],
)
def test_a_quantity_is_read_from_its_rows(name, options, wanted):
    assert value(name, **options) == pytest.approx(wanted, abs=1e-12)


def test_what_was_not_measured_is_said():
    with pytest.raises(RecordError, match="no row has"):
        value("robust_verdict", protocol="fast")
    with pytest.raises(RecordError, match=r"set measure\.agop_examples"):
        value("feature_correlation", condition="attacked")
    with pytest.raises(RecordError, match="no row has 'memorised_way' over the epochs on train"):
        value("memorised_way", without="memorised_way")


def test_what_has_no_value_is_undefined():
    with pytest.raises(UndefinedError, match=r"no epoch has a held-out accuracy of 0\.97"):
        value("epochs_to", accuracy=0.97)
    flat = [
        row | {"value": 1.0} if row["measure"] == "dilation" else row for row in quantity_rows()
    ]
    with pytest.raises(UndefinedError, match="does not change over the epochs"):
        quantity_value(Component(name="dilation_with_memorization"), tidy(flat))


def test_dilation_may_be_asked_from_its_least_on():
    """Before it, test features gather because the network learns."""
    dilations = [9.0, 5.0, 1.0, 2.0, 3.0]
    ways = [0.1, 0.2, 0.3, 0.4, 0.5]
    rows = tidy([*curve("memorised_way", ways), *curve("dilation", dilations, split="test")])

    def found(since: str) -> float:
        part = Component(name="dilation_with_memorization", options={"since": since})
        return quantity_value(part, rows)

    assert found("start") == pytest.approx(-0.6)
    assert found("least") == pytest.approx(1.0)


def test_options_are_checked():
    with pytest.raises(ConfigError, match="needs the option 'accuracy'"):
        value("epochs_to")
    with pytest.raises(ConfigError, match="option 'k'"):
        value("hd", k=3)


def test_collapse_at_a_train_accuracy_is_that_of_the_first_epoch_that_reaches_it():
    rows = []
    for epoch, (accuracy, nc1) in enumerate([(0.5, 4.0), (0.8, 2.0), (0.7, 1.0), (0.9, 0.1)], 1):
        at = PLACE | {"epoch": epoch, "condition": "clean"}
        rows.append(at | {"measure": "nc1_trace", "grouping": "true", "value": nc1})
        rows.append(at | {"tap": "output", "measure": "accuracy", "value": accuracy})
        rows.append(rows[-1] | {"split": "validation", "value": 1.0})
        decoys = {"condition": "attacked"}, {"tap": "block2"}, {"grouping": "landed"}
        rows += [row | decoy | {"value": 1.0} for row in rows[-3:-1] for decoy in decoys[:2]]
        rows.append(rows[-7] | decoys[2])

    def found(accuracy: float) -> float:
        part = Component(name="nc1_trace_log10_at", options={"accuracy": accuracy})
        return quantity_value(part, tidy(rows))

    assert found(0.8) == pytest.approx(math.log10(2))
    assert found(0.81) == pytest.approx(-1)
    with pytest.raises(UndefinedError, match=r"no epoch has a train accuracy of 0\.95"):
        found(0.95)


def test_kept_collapse_is_one_where_nothing_is_lost_and_zero_for_noise():
    assert value("kept_collapse", changes={"landed_nc1": 0.01}) == pytest.approx(1)
    assert value("kept_collapse", changes={"landed_nc1": 10.0}) == pytest.approx(0)


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("landed", {"landed": math.nan}, "landed: no leaps"),
        ("nc1_clean", {"clean": 0.0}, "no logarithm"),
        ("kept_collapse", {"clean": 11.0}, "no more collapsed"),
        ("kept_collapse", {"null": 0.0}, "no logarithm"),
    ],
)
def test_what_is_undefined_says_why(name, changes, reason):
    with pytest.raises(UndefinedError, match=reason):
        value(name, changes=changes)


def test_what_was_not_measured_is_no_undefined_value():
    with pytest.raises(RecordError, match="measure 'alignment_angle'") as raised:
        value("alignment_angle")
    assert not isinstance(raised.value, UndefinedError)
    with pytest.raises(RecordError, match="taps that were measured: block1, block2"):
        value("ncc_adaptive", tap="block9")
    with pytest.raises(RecordError, match="2 different rows"):
        value("robust_accuracy")


def test_values_over_different_examples_are_not_compared():
    rows = [row | ({"n": 51} if row.get("tap") == "block2" else {}) for row in quantity_rows()]
    with pytest.raises(RecordError, match="51 and over 50"):
        quantity_value(Component(name="early_over_late"), tidy(rows))


def test_each_has_one_sentence():
    for name in QUANTITIES.names():
        assert 10 < len(meaning(Component(name=name))) <= 100
    assert meaning(component("nc1_log10")).startswith("decimal logarithm of NC1;")
    assert meaning(component("flattery")).startswith("by how much a weaker protocol")
