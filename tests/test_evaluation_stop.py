"""An evaluation that is asked to stop, or runs out of memory on the way: nothing is lost by it."""

import random
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers_attacks import BALL, differences, examples
from torch import Tensor, nn

from robust_nc import evaluate
from robust_nc.attacks.apgd import APGD
from robust_nc.attacks.pgd import PGD
from robust_nc.attacks.square import Square
from robust_nc.evaluation import Outcome
from robust_nc.evaluation.scoring import Guarded
from robust_nc.exceptions import StoppedError
from robust_nc.runtime import stopping
from robust_nc.types import EvaluationProtocol

COUNT = 12


def stranger(model, images, labels, ball, *, goal="flip", targets=None, seed, ids):
    return images + ball.eps * torch.sign(torch.rand_like(images) - 0.5)


PLAN = EvaluationProtocol(
    "plan",
    (("apgd", APGD(steps=5)), ("pgd", PGD(steps=3, restarts=2)), ("square", Square(queries=6))),
)
WITH_STRANGER = PLAN._replace(attacks=(("stranger", stranger), *PLAN.attacks[:1]))


def judged(model: nn.Module, log: Path | None, plan: EvaluationProtocol = PLAN) -> Outcome:
    images, labels = examples(COUNT)[1:]
    run = partial(evaluate, model, images, labels, BALL, protocol=plan, batch_size=4)
    return run(checks=False, accelerate=False, log=log)


class Wishing(nn.Module):
    """Asks to stop at one of its calls, and counts those that come after."""

    def __init__(self, at: int = 0) -> None:
        super().__init__()
        self.model, self.at, self.calls = examples(COUNT)[0], at, 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.at:
            stopping.wish()
        logits: Tensor = self.model(images)
        return logits


@pytest.fixture(autouse=True)
def no_wish():
    stopping.clear()
    yield
    stopping.clear()


def test_it_stops_within_a_step_and_goes_on_to_the_same_verdict(tmp_path: Path) -> None:
    model = Wishing()
    whole, log = judged(model, None), tmp_path / "log.jsonl"
    calls, stops = model.calls, 0
    while True:
        model = Wishing(at=calls // 2)
        try:
            outcome = judged(model, log)
        except StoppedError:
            assert model.calls - model.at <= 1, "and what it flipped is confirmed"
            stops += 1
            stopping.clear()
            assert stops < 30, "it does not get on"
            continue
        break
    assert stops >= 2
    assert differences(whole, outcome, passes=False) == []


def test_one_that_was_asked_before_it_began_does_nothing() -> None:
    stopping.wish()
    model = Wishing()
    with pytest.raises(StoppedError):
        judged(model, None)
    assert model.calls == 0


def test_an_attack_of_others_ends_its_batch_which_is_kept(tmp_path: Path) -> None:
    model, log = Wishing(), tmp_path / "log.jsonl"
    whole = judged(model, None, WITH_STRANGER)
    model = Wishing(at=5)  # the log's name, three batches of clean images, and the first verdict
    with pytest.raises(StoppedError):
        judged(model, log, WITH_STRANGER)
    assert model.calls == 5
    assert log.read_bytes().count(b"\n") == 2
    stopping.clear()
    outcome = judged(Wishing(), log, WITH_STRANGER)
    assert torch.equal(outcome.clean_correct, whole.clean_correct)


@pytest.mark.parametrize("seed", range(6))
def test_memory_that_runs_out_anywhere_changes_no_verdict(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, calls = examples(COUNT)[0], 0
    whole = judged(model, None)
    forward, chance = Guarded.forward, random.Random(seed)
    failures = [chance.choice([torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])] * 2
    sizes = []

    def failing(self: Guarded, images: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if failures and len(images) > 1 and calls > 1 and chance.random() < 0.2:
            raise failures.pop()
        sizes.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(Guarded, "forward", failing)
    outcome = judged(model, tmp_path / "log.jsonl")
    assert len(failures) < 2
    assert sizes[-1] < 4, "the batch was halved"
    assert torch.equal(outcome.robust, whole.robust)
    assert torch.equal(outcome.clean_correct, whole.clean_correct)
    assert outcome.broken_by == whole.broken_by
