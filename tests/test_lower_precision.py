"""`precision="auto"`: lower where that is faster, and the verdict of float32."""

import time
from pathlib import Path

import pytest
import torch
from helpers_attacks import SHAPE, Around, curved, pictures, predictions
from torch import Tensor, nn

from robust_nc import Ball, Outcome, evaluate
from robust_nc.attacks.gated import Gated
from robust_nc.attacks.pgd import PGD
from robust_nc.config import RunConfig, cell_id, identifying, read
from robust_nc.evaluation.acceleration import cast_once, lowered, slow_bf16
from robust_nc.exceptions import RecordError
from robust_nc.types import EvaluationProtocol

CPU, BALL = torch.device("cpu"), Ball("Linf", 0.015)
LONG = EvaluationProtocol("long", (("pgd", PGD(steps=100, restarts=2)),))
SECONDS = 4e-4  # an image; less is lost in the noise of a busy machine

pytestmark = pytest.mark.skipif(slow_bf16(CPU), reason="this CPU has no instructions for bfloat16")


class Slow(nn.Module):
    """A model that takes time in float32, or in lower precision alone."""

    def __init__(self, model: nn.Module, *, when_lower: bool = False) -> None:
        super().__init__()
        self.model, self.when_lower = model, when_lower

    def forward(self, images: Tensor) -> Tensor:
        if torch.is_autocast_enabled("cpu") == self.when_lower:
            time.sleep(SECONDS * len(images))
        logits: Tensor = self.model(images)
        return logits


def given(model: nn.Module, count: int = 40) -> tuple[Tensor, Tensor]:
    images = pictures(count, SHAPE)
    return images, predictions(model, images)


def judged(model: nn.Module, precision: str = "auto", **options: object) -> Outcome:
    images, labels = given(model)
    asked = {"protocol": LONG, "checks": False, **options}
    return evaluate(model, images, labels, BALL, precision=precision, **asked)


def test_attacks_begin_where_they_are_faster_and_end_in_float32() -> None:
    model = curved(SHAPE, 5)
    found, exact = judged(Slow(model)), judged(model, "float32")
    assert "bf16" in found.accelerated
    assert "bf16" not in exact.accelerated
    assert torch.equal(found.robust, exact.robust)
    assert 0 < int(found.robust.sum()) < len(found.robust)
    # What is far from the boundary is not attacked twice: clean, and per restart 101 and the score.
    once = found.forward_passes[found.robust] <= 1 + 2 * 101 + 2
    assert once.any()
    assert (found.forward_passes[found.robust][~once] > 300).all(), "the near, in float32"


def test_it_is_float32_where_that_is_as_fast_or_nothing_is_measured() -> None:
    model = Slow(curved(SHAPE, 5), when_lower=True)
    assert "bf16" not in judged(model).accelerated
    faster = Slow(curved(SHAPE, 5))
    for options in ({"tune": False}, {"accelerate": False}):
        assert "bf16" not in judged(faster, **options).accelerated


def test_with_two_classes_nothing_says_what_is_near() -> None:
    assert "bf16" not in judged(Slow(curved(SHAPE, 2))).accelerated


def test_a_model_that_hides_in_lower_precision_is_attacked_in_float32() -> None:
    def coarse(logits: Tensor) -> Tensor:
        return 0 * logits + torch.arange(5.0) if logits.dtype == torch.bfloat16 else logits

    plain = curved(SHAPE, 5)
    found = judged(Around(Slow(plain), after=coarse).eval())
    assert "bf16" not in found.accelerated
    assert torch.equal(found.robust, judged(plain, "float32").robust)


def test_what_rounding_saves_near_the_boundary_falls_in_float32() -> None:
    """In bf16 the label gains a little, which saves some examples there and none in the verdict."""
    inner = curved(SHAPE, 5)
    images, labels = given(inner)
    spread = float(inner(images).detach().std())

    def raised(logits: Tensor) -> Tensor:
        if logits.dtype != torch.bfloat16:
            return logits
        first = logits.argmax(1, keepdim=True)
        return logits.scatter_add(
            1, first, torch.full_like(first, 0.04 * spread, dtype=logits.dtype)
        )

    model = Slow(Around(inner, after=raised).eval())
    auto, alone, exact = (
        evaluate(
            *(model, images, labels, BALL),
            protocol=LONG,
            precision=precision,
            checks=False,
        )
        for precision in ("auto", "bf16-only", "float32")
    )
    assert "bf16" in auto.accelerated
    assert alone.robust.sum() >= exact.robust.sum()
    assert torch.equal(auto.robust, exact.robust)


def test_a_log_goes_on_in_the_precision_that_it_began_in(tmp_path: Path) -> None:
    model, log = Slow(curved(SHAPE, 5)), tmp_path / "log"
    whole = judged(model, log=log)
    lines = log.read_bytes().splitlines(keepends=True)
    for cut in (len(lines) // 3, 2 * len(lines) // 3):
        log.write_bytes(b"".join(lines[:cut]))
        again = judged(model, log=log)
        assert torch.equal(again.robust, whole.robust)
        assert "bf16" in again.accelerated
    with pytest.raises(RecordError, match="precision='auto'"):
        judged(model, "float32", log=log)
    early = tmp_path / "early"
    exact = judged(model, "float32", log=early)
    lines = early.read_bytes().splitlines(keepends=True)
    early.write_bytes(b"".join(lines[: len(lines) // 2]))
    again = judged(model, log=early)
    assert again.accelerated == exact.accelerated
    assert torch.equal(again.robust, exact.robust)


def test_what_only_the_near_get_does_not_count_as_work_ahead() -> None:
    gated = EvaluationProtocol("gated", (("near", Gated(PGD(steps=200), above=-0.1)),))
    assert "bf16" not in judged(Slow(curved(SHAPE, 5)), protocol=gated).accelerated


def test_cells_keep_their_names() -> None:
    auto = RunConfig()
    exact = read(RunConfig, {"evaluation": {"precision": "float32"}})
    assert auto.evaluation.precision == "auto"
    assert cell_id(auto) == cell_id(exact)
    assert identifying(auto)["evaluation"]["precision"] == "float32"


def test_weights_that_are_cast_once_answer_as_autocast_does() -> None:
    model, images = curved(SHAPE, 5), pictures(4, SHAPE)
    cast = cast_once(model, images)
    assert {part.weight.dtype for part in cast if isinstance(part, nn.Linear | nn.Conv2d)} == {
        torch.bfloat16
    }
    with torch.no_grad(), lowered("bf16", CPU):
        assert torch.equal(cast(images), model(images))
    assert model[0].weight.dtype == torch.float32


class Normed(nn.Module):
    """Reads the weight of its layer on a way where autocast keeps float32."""

    def __init__(self) -> None:
        super().__init__()
        self.flatten, self.layer = nn.Flatten(), nn.Linear(64, 5)

    def forward(self, images: Tensor) -> Tensor:
        weight = self.layer.weight * 1.001
        return nn.functional.linear(self.flatten(images), weight) * weight.norm()


def test_a_model_that_reads_its_weights_elsewhere_is_left_as_it_is() -> None:
    torch.manual_seed(0)
    model = Normed().eval()
    assert cast_once(model, pictures(4, SHAPE)) is model
