"""Quantities of verdicts, class trees, epochs, depth and wrong labels, read from planted rows."""

from typing import Any

import pytest

from robust_nc.claims.quantities import UndefinedError, meaning, quantity_value
from robust_nc.config import Component
from robust_nc.exceptions import ConfigError, RecordError
from robust_nc.record import tidy

OUTPUT = {"tap": "output", "depth": -1, "split": "test", "n": 100}
VERDICT = OUTPUT | {"measure": "verdict", "note": "best"}
HIT = {"condition": "attacked", "eps": 0.1}
LEAP = {"tap": "penultimate", "feature": "gap", "n": 60, "grouping": "none"} | HIT
LAYER = {"feature": "gap", "split": "train", "condition": "clean", "grouping": "true", "n": 50}
NC1 = LAYER | {"vertices": "same", "measure": "nc1_trace"}
NFM = {"split": "test", "condition": "clean", "n": 20}


def curve(name: str, values: list[float], **at: Any) -> list[dict[str, Any]]:
    place = {"condition": "clean", "split": "train", "measure": name, "n": 30} | at
    return [place | {"epoch": epoch, "value": value} for epoch, value in enumerate(values, 1)]


def planted() -> list[dict[str, Any]]:
    return [
        VERDICT | {"condition": "clean", "value": 0.9},
        VERDICT | {"condition": "clean", "value": 0.8, "note": "last"},
        VERDICT | HIT | {"attack": "standard", "value": 0.5},
        VERDICT | HIT | {"attack": "standard", "value": 0.4, "note": "last"},
        VERDICT | HIT | {"attack": "pgd_ce", "value": 0.58},
        OUTPUT | {"condition": "clean", "measure": "accuracy", "value": 0.91},
        OUTPUT | {"condition": "clean", "measure": "accuracy", "value": 0.99, "split": "train"},
        OUTPUT | {"condition": "clean", "measure": "mistake_severity", "value": 1.5, "n": 9},
        OUTPUT | {"condition": "severest", "measure": "mistake_severity", "value": 2.5},
        OUTPUT | {"condition": "clean", "measure": "hd_1", "value": 0.2},
        OUTPUT | {"condition": "clean", "measure": "hd_5", "value": 1.2},
        LEAP | {"split": "test", "measure": "severity", "value": 1.8},
        LEAP | {"split": "train", "measure": "severity", "value": 9.0},
        LEAP | {"split": "train", "measure": "leap_rate_wrong", "value": 0.7, "n": 10},
        LEAP | {"split": "train", "measure": "leap_rate_memorised", "value": 0.5, "n": 4},
        LEAP | {"split": "train", "measure": "leap_rate_right", "value": 0.4, "n": 50},
        NC1 | {"tap": "layer1", "value": 10.0},
        NC1 | {"tap": "layer4", "value": 0.1},
        NC1 | {"tap": "penultimate", "value": 1.0},
        NFM | {"tap": "block1", "measure": "nfm_agop_root", "value": 0.4},
        NFM | {"tap": "block2", "measure": "nfm_agop_root", "value": 0.8},
        NFM | {"tap": "block3", "measure": "nfm_agop_root", "value": float("nan")},
        NFM | {"tap": "head", "measure": "nfm_agop_root", "value": 1.0},
        NFM | {"tap": "block1", "measure": "nfm_agop_root_centred", "value": 0.1},
        NFM | {"tap": "block1", "measure": "nfm_agop", "value": 0.9},
        *curve("accuracy", [0.5, 0.93, 0.9, 0.96], split="validation", tap="output"),
        *curve("accuracy", [0.99] * 4, tap="output"),
        *curve("memorised_way", [0.1, 0.3, 0.2, 0.6]),
        *curve("dilation", [1.0, 3.0, 2.0, 10.0], split="test"),
        *curve("memorised", [0.0, 0.2, 0.4, 0.9]),
    ]


def value(name: str, *, without: str = "", **options: Any) -> float:
    rows = [row for row in planted() if row["measure"] != without]
    return quantity_value(Component(name=name, options=options), tidy(rows))


@pytest.mark.parametrize(
    ("name", "options", "wanted"),
    [
        ("clean_verdict", {}, 0.9),
        ("clean_verdict", {"weights": "last"}, 0.8),
        ("robust_verdict", {}, 0.5),
        ("robust_verdict", {"weights": "last"}, 0.4),
        ("robust_verdict", {"protocol": "pgd_ce"}, 0.58),
        ("flattery", {}, 0.08),
        ("accuracy", {}, 0.91),
        ("accuracy", {"split": "train"}, 0.99),
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
    flat = [row | {"value": 1.0} if row["measure"] == "dilation" else row for row in planted()]
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


def test_a_quantity_says_what_it_is():
    assert meaning(Component(name="flattery")).startswith("by how much a weaker protocol")
