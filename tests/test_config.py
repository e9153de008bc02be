"""A configuration: read from TOML and JSON, checked, built, and the name of its cell."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest

from robust_nc.config import (
    Component,
    ModelConfig,
    RunConfig,
    TrainConfig,
    build,
    cell_id,
    component,
    plain,
    read,
    training_id,
    training_part,
)
from robust_nc.exceptions import ConfigError, UnknownNameError
from robust_nc.io.user_code import allow
from robust_nc.registry import Registry


@dataclass(frozen=True)
class Part:
    ball: str
    steps: int = 3
    mode: Literal["a", "b"] = "a"
    rate: float = 0.5


PARTS = Registry("part", "parts-of-a-test", f"{__name__}:ENTRIES")
ENTRIES = {"one": Part}


def test_a_configuration_survives_json() -> None:
    config = read(RunConfig, {"train": {"objective": {"name": "pgd", "steps": 5}}, "seed": 3})
    assert read(RunConfig, plain(config)) == config
    assert config.train.objective == Component(name="pgd", options={"steps": 5})


def test_what_is_no_table_gets_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"^suite\.toml: .*the top level"):
        read(RunConfig, [], source="suite.toml")


def test_classes_take_what_toml_takes_and_refuse_the_rest_in_one_sentence() -> None:
    made = RunConfig(
        data={"dataset": "cifar10", "augment": ["crop"]},
        model=ModelConfig(image_shape=[3, 32, 32], head="etf"),
        train={"objective": {"name": "trades", "beta": 3.0}, "lr": np.float32(0.5)},
        threat={"eps": "8/255"},
        seed=np.int64(3),
    )
    assert made.train.objective == Component(name="trades", options={"beta": 3.0})
    assert (made.data.augment, made.model.head.name) == (("crop",), "etf")
    assert (made.train.lr, made.seed, made.threat.eps) == (0.5, 3, 8 / 255)
    assert made == read(RunConfig, plain(made))
    assert dataclasses.replace(made, train={"epochs": 1}).train == TrainConfig(epochs=1)
    for values, sentence in (
        ({"train": {"epoch": 3}}, "RunConfig: unknown key 'train.epoch' (did you mean 'epochs'?)"),
        ({"train": {"epochs": "x"}}, 'train.epochs: input should be a valid integer, found "x"'),
        ({"train": 3}, "RunConfig: train: input should be an object, found 3"),
        ({"train": {"objective": len}}, "no value of a configuration"),
        ({"seeds": 1}, "unknown key 'seeds' (did you mean 'seed'?)"),
    ):
        with pytest.raises(ConfigError) as raised:
            RunConfig(**values)
        assert sentence in str(raised.value)
        assert "\n" not in str(raised.value)
    with pytest.raises(ConfigError, match="RunConfig takes keywords"):
        RunConfig({"seed": 1})


def test_build_checks_options_and_adds_what_is_given() -> None:
    made = build(PARTS, component({"name": "one", "steps": 7, "rate": 1}), ball="B", unused=1)
    assert made == Part(ball="B", steps=7, rate=1.0)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"step": 7}, "has no option 'step' (did you mean 'steps'?); valid: steps, mode, rate"),
        ({"ball": "C"}, "has no option 'ball'"),
        ({"steps": "7"}, "option 'steps': input should be a valid integer"),
        ({"steps": 1.5}, "option 'steps'"),
        ({"mode": "c"}, "option 'mode'"),
        ({"rate": float("nan")}, "option 'rate'"),
    ],
)
def test_build_refuses_a_bad_option(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=r"^part 'one'") as raised:
        build(PARTS, Component(name="one", options=options), ball="B")
    assert sentence in str(raised.value)


def of_ones_own(rate: float, **options: object) -> dict[str, object]:
    if rate < 0:
        raise ZeroDivisionError("a rate below 0")
    return {"rate": rate, **options}


def test_parts_of_ones_own_go_by_reference_or_as_they_are() -> None:
    parts = Registry("part", "parts-of-another-test", {})
    reference = f"{__name__}:of_ones_own"
    own = f"{__file__}:of_ones_own"
    with pytest.raises(UnknownNameError, match="code is run where you name it"):
        parts.load(own)
    allow(own)
    allow(reference)
    for name in (reference, own):
        assert build(parts, Component(name=name, options={"more": 3}), rate=1.0)["more"] == 3
        part = Component(name=name, options={"rate": 0.5, "other": "x"})
        assert build(parts, part) == {"rate": 0.5, "other": "x"}
    config = RunConfig(
        model={"head": of_ones_own}, train={"loss": {"name": of_ones_own, "rate": 1.0}}
    )
    assert config.model.head.name == config.train.loss.name == reference
    config = RunConfig(train={"objective": {"name": Part, "steps": 1}})
    assert config.train.objective == Component(name=f"{__name__}:Part", options={"steps": 1})
    parts.register("mine", of_ones_own)
    assert build(parts, Component(name="mine"), rate=2.0) == {"rate": 2.0}
    for missing in (f"{__name__}:missing", "nowhere.py:x"):
        allow(missing)
    for bad, sentence in (
        (lambda: build(parts, Component(name=reference)), "needs the option 'rate'"),
        (lambda: build(parts, Component(name=reference), rate=-1), "failed: ZeroDivisionError: a"),
        (lambda: parts.load(f"{__name__}:missing"), "has no callable 'missing'"),
        (lambda: parts.load("nowhere.py:x"), "does not exist"),
        (lambda: parts.load("mein"), "did you mean 'mine'"),
        (lambda: parts.register("four", 4), "a class or a function, found 4"),
        (lambda: RunConfig(model={"head": lambda: 0}), "must stand at the top of a module"),
    ):
        with pytest.raises(ConfigError) as raised:
            bad()
        assert sentence in str(raised.value)


def test_build_names_a_missing_option() -> None:
    with pytest.raises(ConfigError, match="needs the option 'ball'"):
        build(PARTS, Component(name="one"))


# What names a cell and its weights.


def test_the_digest_follows_the_values_and_not_their_order() -> None:
    one = read(RunConfig, {"seed": 1, "train": {"epochs": 3, "lr": 0.2}})
    other = read(RunConfig, {"train": {"lr": 0.2, "epochs": 3}, "seed": 1})
    assert cell_id(one) == cell_id(other)
    assert cell_id(one) != cell_id(read(RunConfig, {"seed": 2, "train": {"epochs": 3, "lr": 0.2}}))


def test_cells_that_are_only_judged_differently_share_their_weights() -> None:
    base = RunConfig()
    judged = read(RunConfig, {"evaluation": {"examples": 7}, "measure": {"steps": 3}})
    trained = read(RunConfig, {"train": {"epochs": 7}})
    assert cell_id(base) != cell_id(judged)
    assert training_id(base) == training_id(judged)
    assert training_id(base) != training_id(trained)


def test_fields_that_came_later_leave_names_alone_until_they_are_used() -> None:
    """Results that were published with an earlier version keep their cell ids."""
    assert cell_id(RunConfig()) == "a77657f1fbf4bfd4"
    assert "noise" not in training_part(RunConfig())["data"]


@pytest.mark.parametrize(
    "values",
    [
        {"data": {"noise": {"name": "symmetric", "rate": 0.2}}},
        {"model": {"neck": "transform"}},
        {"train": {"backbone_lr": 0.1}},
        {"train": {"averaging": "ema"}},
    ],
)
def test_later_fields_that_training_depends_on_name_other_weights(values) -> None:
    assert training_id(read(RunConfig, values)) != training_id(RunConfig())
