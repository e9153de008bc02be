"""The pool under a referee: what flies side by side, who is told what, and what it costs."""

import dataclasses

import pytest
import torch
from helpers_attacks import BALL, SHORT, Counted, examples
from torch import Tensor

from robust_nc.attacks.apgd import APGD, APGDState
from robust_nc.attacks.pool import PooledAttack
from robust_nc.attacks.slots import Slots
from robust_nc.types import Attacked


class Bench:
    """A referee that asks `own`, but never believes a flip of the examples in `stubborn`."""

    def __init__(self, own, images: Tensor, labels: Tensor, size: int, stubborn=()) -> None:
        self.batch_size = size
        self.own, self.images, self.labels = own, images, labels
        self.stubborn = torch.tensor(list(stubborn), dtype=torch.int64)
        with torch.no_grad():
            self.logits = self.worst_logits = own(images)
        self.asked: list[list[int]] = []
        self.settled: dict[int, tuple[Tensor, int, int]] = {}
        self.passes = 0

    def confirm(self, rows: Tensor, points: Tensor) -> Tensor:
        self.asked.append(rows.tolist())
        with torch.no_grad():
            wrong = self.own(points).argmax(1) != self.labels[rows]
        return wrong & ~torch.isin(rows, self.stubborn)

    def settle(self, rows: Tensor, attacked: Attacked) -> None:
        for place, row in enumerate(rows.tolist()):
            assert row not in self.settled, "told twice"
            passes = int(attacked.forwards[place]), int(attacked.backwards[place])
            self.settled[row] = (attacked.points[place], *passes)

    def spare(self, rows: Tensor) -> None:
        raise AssertionError("no attack of these leaves an example alone")

    def tick(self, forwards: int, backwards: int) -> None:
        self.passes += forwards + backwards

    @property
    def flipped(self) -> Tensor:
        points = torch.stack([self.settled[row][0] for row in range(len(self.images))])
        with torch.no_grad():
            return self.own(points).argmax(1) != self.labels


def standing(count: int = 20):
    """Examples that the model gets right."""
    model, images, _ = examples(count)
    with torch.no_grad():
        return model, images, model(images).argmax(1)


def fly(attack, bench: Bench, model) -> Attacked:
    ids = torch.arange(len(bench.images))
    return attack.run_under(bench, model, bench.images, bench.labels, BALL, seed=3, ids=ids)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Watched(APGD):
    """Notes the examples of every step, and how many items began before each."""

    seen: list[list[int]] = dataclasses.field(default_factory=list)

    def step(self, slots: Slots, state: APGDState) -> APGDState:
        self.seen.append(slots.ids.tolist())
        return super().step(slots, state)


@pytest.mark.parametrize(
    ("name", "size"),
    [("apgd-ce", 1), ("apgd-t", 5), ("fab-t", 5), ("square", 100)],
)
def test_everyone_is_told_once_whatever_the_batch(name: str, size: int) -> None:
    model, images, labels = standing()
    attack = dict(SHORT.attacks)[name]
    bench, whole = (Bench(model, images, labels, batch) for batch in (size, 20))
    result = fly(attack, bench, model)
    fly(attack, whole, model)
    assert sorted(bench.settled) == list(range(20))
    assert torch.equal(bench.flipped, whole.flipped)
    assert 0 < int(bench.flipped.sum()) < 20
    told = [bench.settled[row] for row in range(20)]
    assert torch.equal(result.points, torch.stack([points for points, _, _ in told]))
    assert result.forwards.tolist() == [forwards for _, forwards, _ in told]
    assert result.backwards.tolist() == [backwards for _, _, backwards in told]


def test_a_flip_cancels_the_siblings_and_costs_nothing_more() -> None:
    model, images, _ = examples(24)
    with torch.no_grad():
        labels = model(images).argsort(1)[:, 0]  # wrong from the start: the first pass flips
    counted, bench = Counted(model), Bench(model, images, labels, 8)
    attack = APGD(loss="dlr", num_targets=3, restarts=2, steps=10)
    result = fly(attack, bench, counted)
    assert bench.flipped.all()
    assert (result.forwards == 1).all()
    assert (result.backwards == 1).all()
    assert counted.forwards == counted.backwards == 24


def test_the_batch_stays_full_while_there_is_work() -> None:
    model, images, labels = standing(60)
    attack = Watched(loss="dlr", num_targets=4, steps=10)
    bench = Bench(model, images, labels, 6)
    fly(attack, bench, model)
    sizes = [len(step) for step in attack.seen]
    short = next((place for place, size in enumerate(sizes) if size < 6), len(sizes))
    assert len(sizes) - short <= 10, "only the last flight may be short"


def test_targets_are_those_that_the_referee_finds_likely() -> None:
    """The fast copy is not asked what is likely: no clean pass, and no other targets."""
    model, images, labels = standing(8)
    bench = Bench(model, images, labels, 8)
    bench.logits = torch.zeros(8, 5)  # all alike: the first classes that are not the label

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Aims(APGD):
        aims: list[tuple[int, int]] = dataclasses.field(default_factory=list)

        def step(self, slots: Slots, state: APGDState) -> APGDState:
            assert slots.targets is not None
            self.aims.extend(zip(slots.ids.tolist(), slots.targets.tolist(), strict=True))
            return super().step(slots, state)

    attack = Aims(num_targets=2, steps=2)
    fly(attack, bench, model)
    for row, label in enumerate(labels.tolist()):
        first = [target for target in range(5) if target != label][:2]
        assert {aim for key, aim in attack.aims if key == row} <= set(first)
    assert isinstance(attack, PooledAttack)
