"""Configurations: nested, frozen, strict; read from TOML; named by a digest.

A part that a registry names (a data set, an objective, an attack, ...) is a `Component`: a name and
its options. In TOML it is a string or a table with `name`:

>>> read(RunConfig, {"train": {"objective": "pgd", "epochs": 3}}).train.objective
Component(name='pgd', options={})
>>> read(RunConfig, {"train": {"objective": {"name": "trades", "beta": 3.0}}}).train.objective
Component(name='trades', options={'beta': 3.0})
"""

import dataclasses
import difflib
import functools
import inspect
import json
import re
from collections.abc import Collection, Mapping
from functools import cache
from types import FunctionType
from typing import Annotated, Any, Literal, TypeVar, cast, dataclass_transform

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
)
from pydantic.dataclasses import dataclass as pydantic_dataclass

from robust_nc.exceptions import ConfigError
from robust_nc.io.files import digest
from robust_nc.io.user_code import allow, reference_to, split_code, told
from robust_nc.registry import Registry
from robust_nc.threat import Ball, parse_eps

T = TypeVar("T")

_GATHERS = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_FRACTION = re.compile(r"\d+(\.\d+)?/\d+")
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass_transform(kw_only_default=True, frozen_default=True)
def configuration(cls: type[T]) -> type[T]:
    """Make a class a frozen, keyword-only dataclass that refuses unknown keys and wrong types.

    What is no value of its type is read as in TOML: a table for a class of ours, a list for a
    tuple, a name for a part. Raises `ConfigError` with one sentence for all else.
    """
    made: Any = pydantic_dataclass(frozen=True, kw_only=True, slots=True, config=_STRICT)(cls)
    strictly = made.__init__

    @functools.wraps(strictly)
    def as_in_toml(self: object, *args: object, **values: object) -> None:
        try:
            strictly(self, *args, **values)
        except ValidationError:
            if args:
                raise ConfigError(f"{cls.__name__} takes keywords, such as name=value") from None
            found = read(made, values, source=cls.__name__)
            for field in dataclasses.fields(made):
                object.__setattr__(self, field.name, getattr(found, field.name))

    made.__init__ = as_in_toml
    return cast(type[T], made)


def _as_json(value: Any) -> Any:
    """Say in plain values a configuration, a number of NumPy, and a class or function."""
    if isinstance(value, type | FunctionType):
        return _own(value)
    if dataclasses.is_dataclass(value):
        return plain(value)
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{value!r} is no value of a configuration")


@configuration
class Component:
    """A registered part and its options, e.g. `{name = "trades", beta = 6.0}`."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


def _component(value: object) -> object:
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, type | FunctionType):  # in TOML and JSON there is no such thing
        return {"name": _own(value)}
    if isinstance(value, Mapping) and "options" not in value and "name" in value:
        return {"name": value["name"], "options": {k: v for k, v in value.items() if k != "name"}}
    return value


def _own(part: object) -> str:
    reference = reference_to(part)
    allow(reference)
    return reference


def allow_code(config: "RunConfig") -> None:
    """Let the code run that a configuration names: one of the user's own, not of a stranger."""
    for table in plain(config).values():
        for part in table.values() if isinstance(table, dict) else ():
            if isinstance(part, dict) and split_code(str(part.get("name"))) is not None:
                allow(part["name"])


def _no_number(value: object) -> object:
    if type(value) is int:  # a Literal takes 1 for True
        raise ValueError("input should be false, true or 'reduce-overhead'")
    return value


def _distinct(values: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(values)) < max(len(values), 2):
        raise ValueError("input should be two classes or more, each named once")
    return values


Compile = Annotated[Literal[False, True, "reduce-overhead"], BeforeValidator(_no_number)]
Part = Annotated[Component, BeforeValidator(_component)]
Eps = Annotated[float, BeforeValidator(parse_eps)]
Positive = Annotated[int, Field(ge=1)]
Classes = Annotated[tuple[Annotated[int, Field(ge=0)], ...], AfterValidator(_distinct)]


def component(value: str | Mapping[str, Any] | Component) -> Component:
    """Turn a name, or a table with `name`, into a `Component`."""
    return value if isinstance(value, Component) else read(Component, _component(value))


@configuration
class DataConfig:
    """Which images. `validation` is the share of train that is held out to choose `best`.

    `classes`: only those of the data set, in this order, which are labels 0, 1, ... then (None:
    all); limits count what they leave.
    `imbalance` thins out classes, then `noise` gives training images wrong labels; what is held out
    keeps its balance and its labels. `hierarchy` is the tree of the classes: one of the package's
    names, or a path to a TOML or JSON file (None: the data set's own, where it has one).
    """

    dataset: Part = Field(default_factory=lambda: Component(name="digits"))
    classes: Classes | None = None
    train_limit: Positive | None = None
    test_limit: Positive | None = None
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.1
    augment: tuple[Literal["crop", "flip"], ...] = ()
    imbalance: Part | None = None
    noise: Part | None = None
    hierarchy: str | None = None


@configuration
class ModelConfig:
    """Normalise -> backbone (-> neck) -> head.

    Sizes that are None: as the data set says (else 10 and (3, 32, 32)).
    """

    backbone: Part = Field(default_factory=lambda: Component(name="small_cnn"))
    neck: Part | None = None
    head: Part = Field(default_factory=lambda: Component(name="linear"))
    num_classes: Annotated[int, Field(ge=2)] | None = None
    image_shape: tuple[Positive, Positive, Positive] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    normalise_features: bool = False
    temperature: Annotated[float, Field(gt=0)] = 1.0


@configuration
class TrainConfig:
    """How to train. `objective` is the defense; SGD with momentum on the stated schedule.

    `feature_decay` adds half of it times the squared length of the features to every loss: weight
    decay for the features that the head reads.
    The backbone learns at `backbone_lr` times the rate of the rest; at 0 its parameters stay as
    they were drawn, though its batch norm statistics move. With `averaging` the weights that are
    validated, chosen and kept are averages over the steps. `precision` is that of the products:
    "tf32" allows TF32 on CUDA, which "float32" leaves as torch has it. `compile`: by
    `torch.compile`, "reduce-overhead" with CUDA graphs. The weights of every `keep_every`-th epoch
    stay beside those of the best and the last one. `stream` measures collapse of the features that
    the steps themselves see, without a pass more.
    """

    objective: Part = Field(default_factory=lambda: Component(name="standard"))
    loss: Part = Field(default_factory=lambda: Component(name="ce"))
    schedule: Part = Field(default_factory=lambda: Component(name="one_cycle"))
    epochs: Annotated[int, Field(ge=0)] = 20
    batch_size: Positive = 128
    lr: Annotated[float, Field(gt=0)] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    feature_decay: Annotated[float, Field(ge=0)] = 0.0
    backbone_lr: Annotated[float, Field(ge=0)] = 1.0
    averaging: Part | None = None
    precision: Literal["float32", "tf32", "bf16"] = "float32"
    channels_last: bool = False
    compile: Compile = False
    validate_every: Positive = 1
    collapse_every: Positive = 1
    collapse_examples: Positive = 2_000
    keep_every: Positive | None = None
    stream: bool = False


@configuration
class ThreatConfig:
    """The ball that training and evaluation use: norm and radius (`8/255` or a number)."""

    norm: str = "Linf"
    eps: Eps = 8 / 255

    def ball(self) -> Ball:
        """Return the ball, or raise `InputError` with what is wrong."""
        return Ball(self.norm, self.eps)


@configuration
class EvaluationConfig:
    """How the verdict is made: `protocol` on the first `examples` test images (None: all).

    `attack` joins the worst case: a registered name, `library:Name`, or the author's own
    `module:factory`, with options. `beside` is a weaker protocol whose verdict is told beside it.
    The sweep over radii has a protocol of its own. `precision` is that of the attacks; "auto" gives
    the verdict of float32, and counts as that in names of cells and in records. Images are judged
    `block` at a time (None: all together), whoever does it: equal blocks give equal verdicts, to
    the bit.
    """

    protocol: str = "standard"
    beside: str | None = None
    attack: Part | None = None
    examples: Positive | None = None
    batch_size: Positive | None = None
    precision: Literal["auto", "float32", "tf32", "bf16", "tf32-only", "bf16-only"] = "auto"
    sweep: tuple[Eps, ...] = ()
    sweep_examples: Positive = 500
    sweep_protocol: str = "pgd"
    block: Positive | None = None


Target = Literal["cyclic", "random", "nearest", "farthest", "hierarchy", "severest"]


@configuration
class MeasureConfig:
    """What is measured on the finished weights: taps, conditions, examples, the attack's size.

    `attack`: under which the geometry is measured, a registered name or the author's own with its
    options (None: PGD of `steps` and `restarts`, blind to the scale of the logits).
    `feature`: how outputs `(N, C, H, W)` become rows, "both" for each in turn. `targets`: one
    targeted attack per way to choose the target. `radii`: multiples of eps for the sweep over radii
    (on test). `adaptive`: the protocol that attacks the nearest-vertex classifier of every tap, on
    `adaptive_examples` test images (None: leave it out). `trajectories` and `agop_examples`: test
    images whose way over the attack's steps, and whose gradient products, are measured (0: none).
    `corruptions`: common corruptions of test images ("all": the fifteen), at `severities`. Sums are
    over `block` examples at a time (None: all together) and then merged, whoever made them: equal
    blocks give equal measures, to the bit. `every`: also after every so many epochs, or after those
    it lists, and the last: clean, attacked (untargeted and cyclic) and under noise.
    """

    feature: Literal["gap", "flatten", "both"] = "gap"
    taps: tuple[str, ...] | None = None
    train_examples: Positive | None = 2_000
    test_examples: Positive | None = 1_000
    attack: Part | None = None
    steps: Positive = 20
    restarts: Positive = 1
    batch_size: Positive = 256
    targets: tuple[Target, ...] = (
        "cyclic",
        "random",
        "nearest",
        "farthest",
    )
    radii: tuple[Annotated[float, Field(gt=0)], ...] = (0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
    adaptive: str | None = None
    adaptive_examples: Positive = 200
    trajectories: Annotated[int, Field(ge=0)] = 64
    agop_examples: Annotated[int, Field(ge=0)] = 0
    corruptions: tuple[str, ...] = ()
    severities: Annotated[tuple[Annotated[int, Field(ge=1, le=5)], ...], Field(min_length=1)] = (
        *(1, 2, 3, 4, 5),
    )
    block: Positive | None = None
    every: Positive | tuple[Positive, ...] | None = None


@configuration
class RunConfig:
    """Everything that one cell depends on. Equal configurations have equal digests."""

    data: DataConfig = Field(default_factory=DataConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    threat: ThreatConfig = Field(default_factory=ThreatConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    measure: MeasureConfig = Field(default_factory=MeasureConfig)
    seed: Annotated[int, Field(ge=0)] = 0


def read(kind: type[T], values: object, *, source: str = "configuration") -> T:
    """Build a configuration from plain values (TOML, JSON), strictly.

    Raises `ConfigError` with one sentence: the place, what was found, what is valid.
    """
    try:
        return cast(T, _adapter(kind).validate_json(json.dumps(values, default=_as_json)))
    except ValidationError as error:
        raise ConfigError(f"{source}: {_explain(kind, error)}") from None
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{source}: {error}") from None


def plain(config: object) -> dict[str, Any]:
    """Return a configuration as plain JSON values, defaults included."""
    values: dict[str, Any] = _adapter(type(config)).dump_python(config, mode="json")
    return values


def build(registry: Registry, part: Component, **given: object) -> Any:
    """Call the registered class or function with a part's options, checked strictly, and `given`.

    Options are the parameters that are not `given`; a given value that the target does not take is
    left out. Raises `ConfigError` for an unknown, missing or mistyped option.
    """
    target = registry.load(part.name)
    options = check_options(registry, part, given)
    known = {name: value for name, value in given.items() if name in _parameters(target)}
    if split_code(part.name) is None:
        return target(**options, **known)
    try:
        return target(**options, **known)
    except (Exception, SystemExit) as error:  # the user's own may raise anything
        raise ConfigError(f"{registry.kind} {part.name} failed: {told(error)}") from error


def check_options(
    registry: Registry, part: Component, given: Collection[str] = ()
) -> dict[str, Any]:
    """Return the options of a part as its target's types, or raise `ConfigError`."""
    parameters = _parameters(registry.load(part.name))
    allowed = [name for name in parameters if name not in given]
    for key in part.options:
        if key not in allowed and not _takes_any(registry.load(part.name)):
            raise ConfigError(
                f"{registry.kind} {part.name!r} has no option {key!r}{_nearest(key, allowed)}; "
                f"valid: {', '.join(allowed) or 'none'}"
            )
    for name in allowed:
        if parameters[name].default is inspect.Parameter.empty and name not in part.options:
            raise ConfigError(f"{registry.kind} {part.name!r} needs the option {name!r}")
    return {
        key: _option(registry, part, key, parameters[key].annotation, value)
        if key in parameters
        else value
        for key, value in part.options.items()
    }


def option_names(registry: Registry, name: str) -> tuple[str, ...]:
    """Return all parameters of a registered part: its options, and what is given to it."""
    return tuple(option_types(registry, name))


def option_types(registry: Registry, name: str) -> dict[str, Any]:
    """Return the types of all parameters of a registered part."""
    return {key: one.annotation for key, one in _parameters(registry.load(name)).items()}


def option_defaults(registry: Registry, name: str) -> dict[str, Any]:
    """Return the parameters of a registered part that have a default, and that."""
    found = _parameters(registry.load(name))
    return {key: one.default for key, one in found.items() if one.default is not one.empty}


def _parameters(target: Any) -> dict[str, inspect.Parameter]:
    found = inspect.signature(target).parameters
    return {n: p for n, p in found.items() if n != "self" and p.kind not in _GATHERS}


def _takes_any(target: Any) -> bool:
    return any(p.kind is _GATHERS[1] for p in inspect.signature(target).parameters.values())


def _option(registry: Registry, part: Component, key: str, kind: Any, value: object) -> Any:
    if isinstance(value, str) and _FRACTION.fullmatch(value):
        value = parse_eps(value)  # step sizes are written as radii are: "2/255"
    try:
        return _adapter(kind).validate_json(json.dumps(value, allow_nan=False), strict=True)
    except (ValidationError, ValueError) as error:
        why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise ConfigError(
            f"{registry.kind} {part.name!r}, option {key!r}: {why[:1].lower()}{why[1:]}, "
            f"found {value!r}"
        ) from None


def _adapter(kind: Any) -> TypeAdapter[Any]:
    return _cached_adapter(kind)


@cache
def _cached_adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _explain(kind: Any, error: ValidationError) -> str:
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    place = ".".join(path)
    if first["type"] in {"unexpected_keyword_argument", "extra_forbidden"}:
        valid = _fields_at(kind, path[:-1])
        return f"unknown key {place!r}{_nearest(path[-1], valid)}; valid: {', '.join(valid)}"
    found = json.dumps(first["input"])
    message = first["msg"].removeprefix("Value error, ")
    return f"{place or 'the top level'}: {message[:1].lower()}{message[1:]}, found {found[:80]}"


def _fields_at(kind: Any, path: list[str]) -> list[str]:
    for part in path:
        fields = {field.name: field.type for field in dataclasses.fields(kind)}
        if part not in fields or not dataclasses.is_dataclass(fields[part]):
            return []
        kind = fields[part]
    return [field.name for field in dataclasses.fields(kind)]


def _nearest(name: str, valid: list[str]) -> str:
    near = difflib.get_close_matches(name, valid, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


# Fields that came later: at their default they are no part of an identity, so that results and
# weights of earlier versions keep their names.
_LATER: dict[str, dict[str, object]] = {
    "data": {"imbalance": None, "noise": None, "hierarchy": None, "classes": None},
    "model": {"neck": None},
    "train": {
        "backbone_lr": 1.0,
        "averaging": None,
        "keep_every": None,
        "feature_decay": 0.0,
        "stream": False,
    },
    "evaluation": {"beside": None, "block": None},
    "measure": {
        "corruptions": [],
        "severities": [1, 2, 3, 4, 5],
        "block": None,
        "attack": None,
        "every": None,
    },
}


def identifying(config: RunConfig) -> dict[str, Any]:
    """Return what names a cell: its configuration as plain values, without later defaults."""
    values = plain(config)
    for table, fields in _LATER.items():
        for name, default in fields.items():
            if values[table][name] == default:
                del values[table][name]
    if values["evaluation"]["precision"] == "auto":  # the same verdict as the earlier default
        values["evaluation"]["precision"] = "float32"
    return values


def cell_id(config: RunConfig) -> str:
    """Name a cell: the first 16 hexadecimal digits of the digest of its configuration."""
    return digest(identifying(config))[:16]


def measured_epochs(config: RunConfig) -> tuple[int, ...]:
    """Return the epochs that `measure.every` asks for, from 1; the last is one of them.

    Raises `ConfigError` for one that the training does not have.

    >>> measured_epochs(RunConfig(train={"epochs": 25}, measure={"every": 10}))
    (10, 20, 25)
    """
    every, last = config.measure.every, config.train.epochs
    if every is None:
        return ()
    found = range(every, last, every) if isinstance(every, int) else every
    if not last or max(found, default=0) > last:
        raise ConfigError(
            f"measure.every asks for epoch {max(found, default=1)}, and train.epochs is {last}"
        )
    return tuple(sorted({*found, last}))


def kept_epochs(config: RunConfig) -> tuple[int, ...]:
    """Return the epochs before the last whose weights stay: to be measured, or `train.keep_every`.

    >>> kept_epochs(RunConfig(train={"epochs": 9, "keep_every": 4}, measure={"every": (2, 9)}))
    (2, 4, 8)
    """
    last, every = config.train.epochs, config.train.keep_every
    kept = range(every, last, every) if every else ()
    return tuple(sorted({*kept, *measured_epochs(config)} - {last}))


def training_part(config: RunConfig) -> dict[str, Any]:
    """Return what the weights depend on, and which stay: all but how they are judged and measured.

    Which epochs are measured counts here by the weights that it needs.
    """
    values = identifying(config)
    data = {key: value for key, value in values["data"].items() if key != "test_limit"}
    values["train"].pop("keep_every", None)
    part = {"data": data} | {key: values[key] for key in ("model", "train", "threat", "seed")}
    kept = kept_epochs(config)
    return part | {"kept": list(kept)} if kept else part


def training_id(config: RunConfig) -> str:
    """Name the weights of a cell: cells that differ only in how they are judged share them."""
    return digest(training_part(config))[:16]
