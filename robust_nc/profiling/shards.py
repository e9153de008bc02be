"""How the examples of a split are cut into shards, and what is done to them shard by shard.

An executor is handed the model once, and each shard once. There conditions are made, and features
swept through meters; what the meters of all shards have seen is merged here, in order.

>>> from robust_nc.config import MeasureConfig
>>> slices(1_000, MeasureConfig(batch_size=100), width=3)
[slice(0, 400, None), slice(400, 800, None), slice(800, 1000, None)]
>>> slices(5, MeasureConfig(block=3), width=1)
[slice(0, 3, None), slice(3, 5, None)]
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robust_nc.config import MeasureConfig
from robust_nc.geometry.portable import bare, moved
from robust_nc.profiling.accumulators import Accumulator, FeatureBatch, TapMeter
from robust_nc.profiling.feature_cache import TapBank
from robust_nc.profiling.measurement import (
    CLEAN,
    ConditionImages,
    Examples,
    Measurement,
    VertexMoments,
)
from robust_nc.runtime.executor import IN_PROCESS, Executor, PartCall, Parts, cut_rows
from robust_nc.runtime.progress import Report, no_report, sub_report
from robust_nc.runtime.torch_state import default_device, device_of, full_precision, untouched

_NOISY = "noisy"


class PortableModel:
    """A model on its way: pickled on the CPU, it arrives on the default device of where it goes."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __getstate__(self) -> dict[str, nn.Module]:
        """Return the model, as a copy where it is not on the CPU."""
        here = device_of(self.model).type == "cpu"
        return {"model": self.model if here else copy.deepcopy(self.model).cpu()}

    def __setstate__(self, state: dict[str, nn.Module]) -> None:
        """Move the model to where it can work."""
        self.model = state["model"].to(default_device())


def call_with_model(portable: PortableModel, call: PartCall, *given: Any, report: Report) -> Any:
    """Call with the model: float32 proper, gradients allowed, the model left as it was found."""
    with torch.inference_mode(False), untouched(portable.model), full_precision():
        return call(portable.model, *given, report=report)


class ModelExecutor:
    """An executor that works on one model; what it is given to keep goes over once.

    Functions are called as `call(model, *part, report=...)`, where the work is done.
    """

    def __init__(self, model: nn.Module, executor: Executor = IN_PROCESS) -> None:
        self.model = model
        self.width = max(1, executor.width)
        self._executor = executor
        self._portable = executor.keep(PortableModel(model))
        self._kept: dict[int, tuple[Any, Any]] = {}

    def keep(self, value: Any) -> Any:
        """Hand over a value for as long as this executor works; returns its handle."""
        if id(value) not in self._kept:
            self._kept[id(value)] = (value, self.lend(value))
        return self._kept[id(value)][1]

    def lend(self, value: Any) -> Any:
        """Hand over a value for as long as its handle is held."""
        return self._executor.keep(value)

    def map(self, call: PartCall, parts: Parts, *, report: Report = no_report) -> list[Any]:
        """Call with every part; returns handles, in order."""
        given = [(self._portable, call, *part) for part in parts]
        return self._executor.map(call_with_model, given, report=report)

    def each(self, call: PartCall, parts: Parts, *, report: Report = no_report) -> Iterator[Any]:
        """Yield the values of all parts, in order; as many are held as are made at a time."""
        for start in range(0, len(parts), self.width):
            wave = parts[start : start + self.width]
            told = sub_report(report, start, len(parts), size=len(wave))
            handles = self.map(call, wave, report=told)
            while handles:
                yield self._executor.get([handles.pop(0)])[0]

    def ask(self, call: PartCall, *given: Any) -> Any:
        """Return the value of one call."""
        return next(self.each(call, [given]))


class Shard:
    """Some examples of a split, and in this process what is kept of their features.

    `among` is how many shards there are: they share the memory for features.
    """

    def __init__(self, examples: Examples, *, among: int = 1) -> None:
        self.examples = examples
        self.among = among
        self._banks: dict[str, TapBank] = {}

    def bank(self, model: nn.Module, measurement: Measurement, feature: str) -> TapBank:
        """Return the bank of one way to make rows of features; at first it has clean images."""
        if feature not in self._banks:
            self._banks[feature] = TapBank(
                model,
                {CLEAN: self.examples.images},
                feature=feature,
                batch_size=measurement.settings.batch_size,
                taps=measurement.taps,
                among=self.among,
            )
        return self._banks[feature]

    def __getstate__(self) -> dict[str, Any]:
        """Leave the features behind: elsewhere they are computed again."""
        return vars(self) | {"_banks": {}}


def slices(count: int, settings: MeasureConfig, *, width: int) -> list[slice]:
    """Cut examples into blocks, or without these into at most `width` parts of whole batches.

    A network answers by its batch, in the last bits, so that the batches are those of one process.
    """
    size = settings.block
    if size is None and width > 1:
        size = settings.batch_size * -(-count // (width * settings.batch_size))
    return cut_rows(count, block=size or None)


class SplitCondition(NamedTuple):
    """A condition as whoever merges knows it: handles of its `ConditionImages` by shard."""

    name: str
    shards: Sequence[object]
    targeted: bool = False


class Swept(NamedTuple):
    """What a sweep leaves: meters in the order asked for, and the network's logits `(N, K)`.

    `gradients` as of `ConditionImages`.
    """

    meters: list[Any]
    logits: Tensor
    gradients: tuple[int, int]


class SplitShards:
    """The examples of one split: conditions of them are made, and swept, where their shards are."""

    def __init__(
        self, executor: ModelExecutor, measurement: Measurement, examples: Examples
    ) -> None:
        self.executor = executor
        self.measurement = measurement
        self.examples = examples
        rows = slices(len(examples.labels), measurement.settings, width=executor.width)
        self._shards = [executor.lend(Shard(examples.part(each), among=len(rows))) for each in rows]

    def clean(self) -> SplitCondition:
        """Return the condition of images to which nothing was done."""
        return SplitCondition(CLEAN, [ConditionImages(CLEAN)] * len(self._shards))

    def make(
        self,
        name: str,
        call: Callable[..., ConditionImages],
        *given: Any,
        beside: SplitCondition | None = None,
        targeted: bool = False,
        report: Report = no_report,
    ) -> SplitCondition:
        """Make a condition: `call(model, measurement, shard, *given, report=...)` of each shard.

        With `beside`, the images of that condition are its last argument.
        """
        known = self.executor.keep(self.measurement)
        parts: list[tuple[Any, ...]] = [(known, shard, *given) for shard in self._shards]
        if beside is not None:
            parts = [(*part, image) for part, image in zip(parts, beside.shards, strict=True)]
        return SplitCondition(name, self.executor.map(call, parts, report=report), targeted)

    def sweep(
        self,
        condition: SplitCondition,
        feature: str,
        meters: Sequence[TapMeter],
        vertices: VertexMoments | None = None,
        *,
        again: bool = False,
        last: bool = True,
    ) -> Swept:
        """Pass the features of a condition through meters, and merge those of all shards.

        A sweep made `again` has nothing beside the features, and leaves no logits; after the `last`
        one the condition is let go.
        """
        keep, lend = self.executor.keep, self.executor.lend
        known = keep(self.measurement), None if vertices is None else keep(vertices), lend(meters)
        parts = [
            (shard, images, *known, feature, again, last)
            for shard, images in zip(self._shards, condition.shards, strict=True)
        ]
        merged: list[Any] = []
        logits, seen, unusable = [], 0, 0
        for found in self.executor.each(sweep_shard, parts):
            logits.append(found.logits)
            seen, unusable = seen + found.gradients[0], unusable + found.gradients[1]
            if not merged:
                merged = found.meters
                continue
            for whole, other in zip(merged, found.meters, strict=True):
                whole.merge(other)
        return Swept(merged, torch.cat(logits), (seen, unusable))


def sweep_shard(
    model: nn.Module,
    shard: Shard,
    condition: ConditionImages,
    measurement: Measurement,
    vertices: VertexMoments | None,
    meters: Sequence[TapMeter],
    feature: str,
    again: bool,
    last: bool,
    *,
    report: Report,
) -> Swept:
    """Pass the features of a shard through meters, which come back without the vertices."""
    bank = shard.bank(model, measurement, feature)
    names = {condition.name: condition.images, _NOISY: condition.noisy}
    held = {name: images for name, images in names.items() if images is not None}
    for name, images in held.items():
        bank.hold(name, images)
    known = moved(vertices or {}, device_of(model))
    made: list[tuple[str, Accumulator]] = [
        (each.tap, each.make(known.get(each.tap))) for each in meters
    ]
    for batch in _batches(bank, shard.examples.labels, condition, again) if made else ():
        for tap, meter in made:
            meter.update(batch[tap])
    logits = torch.empty(0) if again else bank.logits(condition.name)
    if last:
        bank.drop(held)
    return Swept([bare(meter) for _, meter in made], logits, condition.gradients)


def _batches(
    bank: TapBank, labels: Tensor, condition: ConditionImages, again: bool
) -> Iterator[dict[str, FeatureBatch]]:
    """Yield batches of a condition by tap, beside clean and noisy ones unless made `again`."""
    nothing = [None] * bank.num_batches
    targets = condition.targets
    for clean, here, noisy in zip(
        nothing if again or condition.name == CLEAN else bank.batches(CLEAN),
        bank.batches(condition.name),
        nothing if again or condition.noisy is None else bank.batches(_NOISY),
        strict=True,  # also ends each sweep, so that its features are kept
    ):
        clean, device = clean or here, here.predicted.device
        mine = labels[here.rows].to(device)
        aimed = None if targets is None else targets[here.rows].to(device)
        yield {
            tap: FeatureBatch(
                clean=clean.features[tap],
                here=features,
                noisy=None if noisy is None else noisy.features[tap],
                labels=mine,
                clean_predicted=clean.predicted,
                predicted=here.predicted,
                target=aimed,
            )
            for tap, features in here.features.items()
        }
