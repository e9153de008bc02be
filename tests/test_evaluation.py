from pathlib import Path

import pytest
import torch
from helpers_attacks import differences, own
from torch import Tensor, nn

from robust_nc import Ball, evaluate
from robust_nc.exceptions import InputError, RecordError, UnknownNameError

BALL = Ball("Linf", 0.1)


def linear(classes: int = 3, pixels: int = 16) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, classes)).eval()


def examples(model: nn.Module, count: int = 40) -> tuple[Tensor, Tensor]:
    """Images in the middle of the pixel range, where no bound stands in the way."""
    images = 0.5 + 0.2 * torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    labels = model(images).argmax(1)
    labels[::7] = (labels[::7] + 1) % 3  # some are wrong from the start
    return images, labels


def analytic_robust(model: nn.Module, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    """A linear model falls in Linf iff eps reaches a margin over the L1 norm of its weights."""
    layer = model[1]
    logits, weight = layer(images.flatten(1)), layer.weight
    standing = torch.ones(len(images), dtype=torch.bool)
    for other in range(len(weight)):
        margin = logits[torch.arange(len(images)), labels] - logits[:, other]
        reach = eps * (weight[labels] - weight[other]).abs().sum(1)
        standing &= (labels == other) | (margin > reach)
    return standing


def test_a_linear_model_gets_its_analytic_verdict() -> None:
    model = linear()
    images, labels = examples(model)
    outcome = evaluate(model, images, labels, BALL, protocol="pgd")
    truth = analytic_robust(model, images, labels, BALL.eps)
    assert 0 < truth.sum() < len(truth)
    assert torch.equal(outcome.robust, truth)
    assert torch.equal(outcome.clean_correct, model(images).argmax(1) == labels)
    assert [name == "clean" for name in outcome.broken_by] == (~outcome.clean_correct).tolist()
    assert [name == "" for name in outcome.broken_by] == outcome.robust.tolist()
    assert BALL.contains(outcome.adversarials, images).all()
    broken = outcome.clean_correct & ~outcome.robust
    assert (model(outcome.adversarials[broken]).argmax(1) != labels[broken]).all()
    assert (outcome.forward_passes[~outcome.clean_correct] == 1).all()
    assert (outcome.backward_passes[outcome.robust] == 40).all()  # two attacks of 20 steps


@pytest.mark.parametrize("size", [1, 7, 16, 500])
def test_the_verdict_does_not_depend_on_the_batch(size: int) -> None:
    model = linear()
    images, labels = examples(model)
    whole = evaluate(model, images, labels, BALL, protocol="pgd")
    cut = evaluate(model, images, labels, BALL, protocol="pgd", batch_size=size)
    assert torch.equal(whole.robust, cut.robust)
    assert whole.broken_by == cut.broken_by


class Lying:
    """Returns images of another class, far outside the ball."""

    def __init__(self, stranger: Tensor) -> None:
        self.stranger = stranger

    def __call__(self, model, images, labels, ball, *, goal="flip", targets=None, seed, ids):
        return self.stranger.expand_as(images)


class Broken(Lying):
    def __call__(self, model, images, labels, ball, *, goal="flip", targets=None, seed, ids):
        return torch.full_like(images, float("nan"))


class Shapeless(Lying):
    def __call__(self, model, images, labels, ball, *, goal="flip", targets=None, seed, ids):
        return images[:, 0]


class Overwriting(Lying):
    """Writes the stranger over the originals, and new labels over the labels."""

    def __call__(self, model, images, labels, ball, *, goal="flip", targets=None, seed, ids):
        images.copy_(self.stranger.expand_as(images))
        labels.add_(1).remainder_(3)
        return images


class Vandal(Lying):
    """Turns the model around."""

    def __call__(self, model, images, labels, ball, *, goal="flip", targets=None, seed, ids):
        for parameter in model.parameters():
            with torch.no_grad():
                parameter.mul_(-1)
        return images


class Gradient(Lying):
    """An uncounted attack: one step of the gradient sign."""

    def __call__(self, model, images, labels, ball, *, goal="flip", targets=None, seed, ids):
        points = images.clone().requires_grad_(True)
        nn.functional.cross_entropy(model(points), labels).backward()
        assert points.grad is not None
        return images + ball.eps * points.grad.sign()


def robust_model() -> tuple[nn.Module, Tensor, Tensor]:
    """No point of the ball flips these examples, but points outside it do."""
    model = linear()
    images, labels = examples(model, 200)
    keep = analytic_robust(model, images, labels, 0.1)
    return model, images[keep], labels[keep]


def test_a_lying_attack_does_not_win() -> None:
    model, images, labels = robust_model()
    images, labels = images[labels == 1], labels[labels == 1]
    stranger = torch.zeros(1, 1, 4, 4)
    assert len(images)
    assert (model(stranger).argmax(1) != labels[0]).all()
    outcome = evaluate(model, images, labels, BALL, protocol=own(Lying(stranger)))
    assert outcome.robust.all()
    assert BALL.contains(outcome.adversarials, images).all()
    assert [warning.name for warning in outcome.warnings] == ["left-ball:own"]


def test_an_attack_that_writes_into_its_inputs_does_not_win() -> None:
    model, images, labels = robust_model()
    before = images.clone()
    outcome = evaluate(model, images, labels, BALL, protocol=own(Overwriting(1 - images[:1])))
    assert outcome.robust.all()
    assert torch.equal(images, before)
    assert BALL.contains(outcome.adversarials, images).all()


def test_an_attack_that_changes_the_weights_is_named() -> None:
    model, images, labels = robust_model()
    with pytest.raises(InputError, match="attack 'own' changed the weights"):
        evaluate(model, images, labels, BALL, protocol=own(Vandal(images[:1])))


def test_the_verdict_is_made_in_float32_whatever_the_caller_allows() -> None:
    model = linear()
    images, labels = examples(model)
    plain = evaluate(model, images, labels, BALL, protocol="pgd")
    with torch.autocast("cpu", torch.bfloat16):
        inside = evaluate(model, images, labels, BALL, protocol="pgd")
    assert not differences(plain, inside)


def test_an_attack_that_returns_nan_breaks_nothing() -> None:
    model, images, labels = robust_model()
    outcome = evaluate(model, images, labels, BALL, protocol=own(Broken(images[:1])))
    assert outcome.robust.all()
    assert outcome.adversarials.isfinite().all()
    assert [warning.name for warning in outcome.warnings] == ["left-ball:own"]


def test_an_attack_that_returns_another_shape_is_named() -> None:
    model, images, labels = robust_model()
    with pytest.raises(InputError, match="attack 'own' returned"):
        evaluate(model, images, labels, BALL, protocol=own(Shapeless(images[:1])))


def test_passes_of_an_uncounted_attack_are_those_the_model_saw() -> None:
    model, images, labels = robust_model()
    outcome = evaluate(model, images, labels, BALL, protocol=own(Gradient(images[:1])))
    assert (outcome.forward_passes == 1 + 1 + 1).all()  # clean, the attack's own, the re-scoring
    assert (outcome.backward_passes == 1).all()


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(16, 3)
    )
    model[1].eval()
    model[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    images, labels = torch.rand(6, 1, 4, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    outcome = evaluate(model, images, labels, BALL, protocol="pgd")
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model[0].weight.requires_grad
    assert model[4].weight.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [warning.name for warning in outcome.warnings] == ["train-mode"]


def test_a_finished_log_is_read_and_a_torn_one_is_continued(tmp_path: Path) -> None:
    model = linear()
    images, labels = examples(model)
    log = tmp_path / "log.jsonl"
    whole = evaluate(model, images, labels, BALL, protocol="pgd", batch_size=4, log=log)
    lines = log.read_bytes().splitlines(keepends=True)
    assert len(lines) > 5
    for cut in (1, 3, len(lines) - 2):
        log.write_bytes(b"".join(lines[:cut]) + lines[cut][:20])  # killed in the middle of a write
        # The batch size is not part of the verdict, so it may change on the way.
        resumed = evaluate(model, images, labels, BALL, protocol="pgd", batch_size=7, log=log)
        assert torch.equal(whole.robust, resumed.robust)
        assert whole.broken_by == resumed.broken_by
        assert torch.equal(whole.forward_passes, resumed.forward_passes)
        assert torch.allclose(whole.adversarials, resumed.adversarials, atol=1e-6)
    log.write_bytes(lines[0][:9])
    again = evaluate(model, images, labels, BALL, protocol="pgd", batch_size=4, log=log)
    assert not differences(whole, again)


def test_a_log_spares_the_examples_that_it_holds(tmp_path: Path) -> None:
    model = linear()
    images, labels = examples(model)
    log = tmp_path / "log.jsonl"
    evaluate(model, images, labels, BALL, protocol="pgd", log=log)
    seen: list[int] = []
    handle = model.register_forward_hook(lambda *_: seen.append(1))
    evaluate(model, images, labels, BALL, protocol="pgd", log=log, checks=False, accelerate=False)
    handle.remove()
    assert len(seen) == 2  # what the model answers is part of its name; and the clean verdict


def test_warnings_and_plain_attacks_survive_a_resumption(tmp_path: Path) -> None:
    model, images, labels = robust_model()
    log = tmp_path / "log.jsonl"
    whole, again = (
        evaluate(model, images, labels, BALL, protocol=own(Lying(images[:1] * 0)), log=log)
        for _ in range(2)
    )
    assert differences(whole, again) == ["attacks"], "two objects of one class"
    assert whole.warnings == again.warnings != ()


def test_the_log_of_a_model_with_the_same_weights_is_refused(tmp_path: Path) -> None:
    class Turned(nn.Sequential):
        def forward(self, images: Tensor) -> Tensor:
            return -super().forward(images)

    model = linear()
    images, labels = examples(model)
    evaluate(model, images, labels, BALL, protocol="pgd", log=tmp_path / "log.jsonl")
    with pytest.raises(RecordError, match="not the log of this evaluation"):
        evaluate(Turned(*model), images, labels, BALL, protocol="pgd", log=tmp_path / "log.jsonl")


@pytest.mark.parametrize("content", ["", "not a log\n", '{"evaluation": "other"}\n'])
def test_the_log_of_something_else_is_refused_and_kept(tmp_path: Path, content: str) -> None:
    model = linear()
    images, labels = examples(model)
    log = tmp_path / "log.jsonl"
    evaluate(model, images, labels, BALL, protocol="pgd", log=log)
    if content:
        log.write_text(content)
        kept = content.encode()
    else:
        kept = log.read_bytes()
    with pytest.raises(RecordError, match="not the log of this evaluation"):
        evaluate(model, images, labels, BALL, protocol="pgd", seed=1, log=log)
    assert log.read_bytes() == kept


def test_no_examples_give_an_empty_verdict() -> None:
    model = linear()
    images, labels = examples(model)
    outcome = evaluate(model, images[:0], labels[:0], BALL, protocol="pgd")
    assert len(outcome.robust) == len(outcome.broken_by) == 0


def bad_model(output: Tensor) -> nn.Module:
    class Constant(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return output

    return Constant()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda m, x, y: (m, x * 255, y), "divide by 255"),
        (lambda m, x, y: (m, x.clone().index_fill_(0, torch.tensor([2]), float("nan")), y), "NaN"),
        (lambda m, x, y: (m, x[0], y), "(N, C, H, W)"),
        (lambda m, x, y: (m, x, y[:-1]), "labels"),
        (lambda m, x, y: (m, x, y + 0.5), "whole numbers"),
        (lambda m, x, y: (m, x, y - 5), "label"),
        (lambda m, x, y: (m, x, y + 5), "out of range: the model has 3 classes"),
        (lambda m, x, y: (bad_model(torch.zeros(len(x))), x, y), "must return logits (N, K)"),
        (lambda m, x, y: (bad_model(torch.zeros(len(x), 1)), x, y * 0), "at least two classes"),
        (lambda m, x, y: (bad_model(torch.full((len(x), 3), float("nan"))), x, y), "not finite"),
    ],
)
def test_bad_input_gets_one_sentence(change, sentence: str) -> None:
    model = linear()
    model, images, labels = change(model, *examples(model))
    with pytest.raises(InputError) as raised:
        evaluate(model, images, labels, BALL, protocol="pgd")
    assert sentence in str(raised.value)


def test_an_unknown_protocol_and_a_bad_batch_size() -> None:
    model = linear()
    images, labels = examples(model)
    with pytest.raises(UnknownNameError, match="unknown protocol 'pdg'; did you mean 'pgd'"):
        evaluate(model, images, labels, BALL, protocol="pdg")
    with pytest.raises(ValueError, match="batch_size must be a whole number"):
        evaluate(model, images, labels, BALL, protocol="pgd", batch_size=0)
