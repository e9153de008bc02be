import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robust_nc.attacks.losses import LOSSES
from robust_nc.exceptions import InputError

LOGITS = torch.tensor([[3.0, 1.0, 0.5, -2.0], [0.0, 2.0, 4.0, 1.0]])
LABELS = torch.tensor([0, 1])
TARGETS = torch.tensor([3, 0])


def test_values_by_hand() -> None:
    assert LOSSES["margin"](LOGITS, LABELS, None, None).tolist() == [-2.0, 2.0]
    assert LOSSES["margin"](LOGITS, LABELS, TARGETS, None).tolist() == [-5.0, -2.0]
    dlr = LOSSES["dlr"](LOGITS, LABELS, None, None)
    assert dlr.tolist() == pytest.approx([-2 / 2.5, 2 / 3])
    dlr = LOSSES["dlr"](LOGITS, LABELS, TARGETS, None)
    assert dlr.tolist() == pytest.approx([-5 / (3 + 0.75), -2 / (4 - 0.5)])
    shares = np.exp(LOGITS.double().numpy())
    shares /= shares.sum(1, keepdims=True)
    rows = np.arange(2)
    ce = LOSSES["ce"](LOGITS, LABELS, None, None)
    assert ce.tolist() == pytest.approx(-np.log(shares[rows, LABELS]), rel=1e-6)
    ce = LOSSES["ce"](LOGITS, LABELS, TARGETS, None)
    assert ce.tolist() == pytest.approx(np.log(shares[rows, TARGETS]), rel=1e-6)


def test_kl_by_hand() -> None:
    reference = torch.tensor([[0.0, 0.0], [1.0, -1.0]])
    logits = torch.tensor([[0.0, 2.0], [1.0, -1.0]])
    p, q = 0.5, 1 / (1 + np.exp(2.0))
    expected = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    found = LOSSES["kl"](logits, torch.tensor([0, 0]), None, reference)
    assert found.tolist() == pytest.approx([expected, 0.0], abs=1e-6)


@given(st.integers(0, 10_000), st.floats(0.1, 100), st.floats(-50, 50))
@settings(deadline=None, max_examples=25)
def test_dlr_is_blind_to_scale_and_shift(seed: int, scale: float, shift: float) -> None:
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    labels, targets = torch.arange(6) % 5, (torch.arange(6) + 2) % 5
    for wanted in (None, targets):
        plain = LOSSES["dlr"](logits, labels, wanted, None)
        moved = LOSSES["dlr"](logits * scale + shift, labels, wanted, None)
        assert torch.allclose(plain, moved, atol=1e-9)


def test_margin_is_positive_exactly_where_misclassified() -> None:
    logits = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(200) % 3
    wrong = logits.argmax(1) != labels
    assert torch.equal(LOSSES["margin"](logits, labels, None, None) > 0, wrong)
    assert torch.equal(LOSSES["dlr"](logits, labels, None, None) > 0, wrong)


def test_dlr_of_too_few_classes_is_the_margin() -> None:
    pair, three = LOGITS[:, :2], LOGITS[:, :3]
    margin, dlr = LOSSES["margin"], LOSSES["dlr"]
    labels, targets = LABELS % 2, (LABELS + 1) % 2
    assert torch.equal(dlr(pair, labels, None, None), margin(pair, labels, None, None))
    assert torch.equal(dlr(three, labels, targets, None), margin(three, labels, targets, None))
    assert not torch.equal(dlr(three, labels, None, None), margin(three, labels, None, None))


def test_a_loss_without_a_targeted_form_says_what_has_one() -> None:
    with pytest.raises(InputError, match="no targeted form"):
        LOSSES["kl"](LOGITS, LABELS, TARGETS, LOGITS)


@pytest.mark.parametrize("loss", ["margin", "dlr"])
def test_ties_give_finite_gradients(loss: str) -> None:
    logits = torch.zeros(2, 4, requires_grad=True)
    LOSSES[loss](logits, LABELS, None, None).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
