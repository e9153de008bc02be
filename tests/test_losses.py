"""Training losses: values, gradients, invariances, extremes, options; those of features too."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from reference import losses as reference

from robust_nc.config import Component
from robust_nc.data.hierarchy.tree import read_hierarchy
from robust_nc.exceptions import ConfigError, InputError
from robust_nc.models.frames import simplex_etf
from robust_nc.models.heads import Head, LinearHead
from robust_nc.registry import LOSSES
from robust_nc.training import losses
from robust_nc.training.losses import (
    FeatureLoss,
    Seen,
    build_loss,
    dot_regression,
    haframe_loss,
    schedule_at,
)

OF_LOGITS = [
    ("ce", "cross_entropy", {}),
    ("label_smoothing", "label_smoothing", {}),
    ("label_smoothing", "label_smoothing", {"alpha": 0.0}),
    ("label_smoothing", "label_smoothing", {"alpha": 0.6}),
    ("label_relaxation", "label_relaxation", {}),
    ("label_relaxation", "label_relaxation", {"alpha": 0.0}),
    ("label_relaxation", "label_relaxation", {"alpha": 0.6}),
    ("mse", "squared_error", {}),
    ("mse", "squared_error", {"target": "signed"}),
    ("margin", "margin", {}),
    ("margin", "margin", {"kappa": 0.0}),
]
OF_FEATURES = [
    ("dot_regression", {}),
    ("haframe", {}),
    ("haframe", {"alpha": 1.0}),
    ("haframe", {"alpha": 0.0}),
]
SIZES = [(2, 12), (3, 12), (10, 12)]


class Framed(Head):
    """A fixed frame of unit rows, at any precision; its logits are not cosines."""

    def __init__(self, frame: torch.Tensor) -> None:
        super().__init__(*frame.shape)
        self.register_buffer("rows", frame)

    def vertices(self):
        return 3 * self.rows

    def frame(self):
        return self.rows


def built(name, options):
    return build_loss(Component(name=name, options=options))


def batch(classes, examples, *, spread=2.0, seed=0):
    """Float64 logits on both sides of every threshold, and labels of every class."""
    source = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(examples, classes, generator=source, dtype=torch.float64)
    labels = torch.arange(examples) % classes
    logits[::3] += 6 * torch.nn.functional.one_hot(labels, classes)[::3]
    return logits, labels


def frames(classes, dim=12, *, seed=0):
    """A simplex, and rows at other angles from each other; float64, unit to the last digit."""
    source = torch.Generator().manual_seed(seed)
    uneven = torch.randn(classes, dim, generator=source, dtype=torch.float64)
    both = [simplex_etf(classes, dim, seed=seed).double(), uneven]
    return [rows / rows.norm(dim=1, keepdim=True) for rows in both]


def seen_by(head, features):
    return Seen(head(features), features, head)


def through_head(loss, head, labels, features):
    return loss(seen_by(head, features), labels)


@pytest.mark.parametrize(("classes", "examples"), SIZES)
@pytest.mark.parametrize(("name", "oracle", "options"), OF_LOGITS)
def test_values_of_logits_are_the_formulas(name, oracle, options, classes, examples):
    logits, labels = batch(classes, examples)
    found = built(name, options)(logits, labels)
    one = partial(getattr(reference, oracle), **options)
    wanted = [one(row, int(label)) for row, label in zip(logits.numpy(), labels, strict=True)]
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-9, atol=1e-12)
    single = built(name, options)(logits.float(), labels)
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.numpy(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("classes", "examples"), SIZES)
@pytest.mark.parametrize("place", [0, 1], ids=["simplex", "uneven"])
def test_values_of_features_are_the_formulas(place, classes, examples):
    frame = frames(classes)[place]
    features = torch.randn(examples, 12, generator=torch.Generator().manual_seed(5)).double()
    labels = torch.arange(examples) % classes
    seen = seen_by(Framed(frame), features)
    rows = list(zip(seen.logits.numpy(), features.numpy(), labels.tolist(), strict=True))
    wanted = [reference.dot_regression(x, frame.numpy(), y) for _, x, y in rows]
    np.testing.assert_allclose(dot_regression(seen, labels).numpy(), wanted, rtol=1e-9)
    for alpha in (0.0, 0.4, 1.0):
        wanted = [reference.haframe(z, x, frame.numpy(), y, alpha=alpha) for z, x, y in rows]
        found = haframe_loss(seen, labels, alpha=alpha)
        assert found.dtype == torch.float64
        np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-9)


@pytest.mark.parametrize(("name", "oracle", "options"), OF_LOGITS)
def test_gradients_by_logits_are_the_finite_differences(name, oracle, options):
    logits, labels = batch(3, 12)
    loss = built(name, options)
    assert torch.autograd.gradcheck(lambda z: loss(z, labels), logits.requires_grad_())


@pytest.mark.parametrize(("name", "options"), OF_FEATURES)
def test_gradients_by_features_are_the_finite_differences(name, options):
    _, labels = batch(3, 12)
    features = torch.randn(12, 12, generator=torch.Generator().manual_seed(6)).double()
    for frame in frames(3):
        head = Framed(frame)
        loss = built(name, options)
        through = partial(through_head, loss, head, labels)
        assert torch.autograd.gradcheck(through, features.clone().requires_grad_())


def test_a_divergence_moves_both_of_its_arguments():
    logits, _ = batch(4, 6)
    other, _ = batch(4, 6, seed=1)
    both = (logits.requires_grad_(), other.requires_grad_())
    assert torch.autograd.gradcheck(losses.kl_divergence, both)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("size", [1e4, -1e4, 88.0, 1e-30, 0.0])
@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
def test_extreme_outputs_leave_values_and_gradients_finite(size, classes, half):
    labels = torch.arange(2 * classes) % classes
    extreme = torch.zeros(2 * classes, classes)
    extreme[:, 0] = size
    extreme = (extreme.bfloat16() if half else extreme).requires_grad_()
    seen = seen_by(Framed(simplex_etf(classes, classes, seed=0)), extreme)
    cases = [(name, options, extreme) for name, _, options in OF_LOGITS]
    for name, options, outputs in cases + [(*case, seen) for case in OF_FEATURES]:
        found = built(name, options)(outputs, labels)
        assert found.dtype == torch.float32
        assert bool(found.isfinite().all())
        (gradient,) = torch.autograd.grad(found.sum(), extreme, retain_graph=True)
        assert bool(gradient.isfinite().all())


def test_far_logits_still_draw_back():
    logits = torch.tensor([[-1e4, 0.0, 0.0]], requires_grad=True)
    for name in ("ce", "label_smoothing", "label_relaxation", "margin"):
        (gradient,) = torch.autograd.grad(built(name, {})(logits, torch.tensor([0])).sum(), logits)
        assert float(gradient[0, 0]) < -0.8
        torch.testing.assert_close(gradient.sum(), torch.tensor(0.0), atol=1e-5, rtol=0)


def test_soft_labels_share_by_distance_in_the_tree():
    tree = read_hierarchy("digits").distances().double()
    logits, labels = batch(10, 30)
    for beta in (0.0, 4.0, 1e3):
        found = built("soft_labels", {"hierarchy": "digits", "beta": beta})(logits, labels)
        targets = torch.exp(-beta * tree / tree.max())
        targets /= targets.sum(1, keepdim=True)
        wanted = -(targets[labels] * logits.log_softmax(1)).sum(1)
        torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(found, built("ce", {})(logits, labels))
    with pytest.raises(InputError, match="10 classes"):
        built("soft_labels", {"hierarchy": "digits"})(logits[:, :4], labels % 4)
    with pytest.raises(InputError, match=r"need a tree of the classes: .*digits"):
        built("soft_labels", {})(logits, labels)


def test_feature_decay_adds_half_of_the_squared_length():
    seen = seen_by(Framed(simplex_etf(4, 4, seed=0)), batch(4, 8)[0])
    labels, length = torch.arange(8) % 4, seen.features.square().sum(1)
    for name in ("ce", "haframe"):
        plain, decayed = (
            build_loss(Component(name=name), feature_decay=decay) for decay in (0.0, 0.5)
        )
        wanted = plain(seen if name == "haframe" else seen.logits, labels) + 0.25 * length
        torch.testing.assert_close(decayed(seen, labels), wanted)


def test_dot_regression_of_a_learnable_head_reads_its_vertices():
    head = LinearHead(4, 6, seed=0, temperature=0.5)
    features = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(8) % 4
    found = dot_regression(seen_by(head, features), labels)
    directions = head.vertices().detach().double().numpy()
    rows = features.double().numpy()
    wanted = [reference.dot_regression(rows[i], directions, i % 4) for i in range(8)]
    np.testing.assert_allclose(found.detach().numpy(), wanted, rtol=1e-5)
    (gradient,) = torch.autograd.grad(found.sum(), head.weight)
    assert float(gradient.abs().max()) > 0


def test_haframe_asks_for_a_fixed_frame():
    head = LinearHead(4, 6, seed=0)
    seen = seen_by(head, torch.randn(2, 6))
    with pytest.raises(ConfigError, match=r"LinearHead has none; choose the head .*'nearest_etf'"):
        built("haframe", {})(seen, torch.tensor([0, 1]))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["dot_regression", "haframe"])
def test_angles_are_as_exact_as_float32(name, dtype, autocast):
    frame = frames(4)[1].float()
    features = torch.randn(9, 12, generator=torch.Generator().manual_seed(2)).to(dtype)
    labels = torch.arange(9) % 4
    loss = built(name, {"alpha": 1.0} if name == "haframe" else {})
    wanted = loss(seen_by(Framed(frame.double()), features.double()), labels)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = loss(seen_by(Framed(frame), features), labels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)


def test_schedules_are_those_of_the_authors():
    # (1 - cos(2 pi e / P)) / 2 with epochs e of E = 8 and a period P of 4: 0, 1/2, 1, 1/2, 0, ...
    wave = [0.0, 0.5, 1.0, 0.5, 0.0, 0.5, 1.0, 0.5, 0.0]
    epochs = [e / 8 for e in range(9)]
    wanted = {
        "constant": [1.0] * 9,
        "linear_increase": epochs,
        "linear_decrease": [1 - e for e in epochs],
        "cosine": wave,
        "cosine_linear_increase": [w * e for w, e in zip(wave, epochs, strict=True)],
        "cosine_linear_decrease": [1 - w * e for w, e in zip(wave, epochs, strict=True)],
    }
    assert set(wanted) == set(losses.Schedule.__args__)
    for name, values in wanted.items():
        found = [schedule_at(name, e, period=0.5) for e in epochs]
        np.testing.assert_allclose(found, values, atol=1e-12)


def test_haframe_moves_between_its_ends_over_the_training():
    seen = seen_by(Framed(frames(4)[1]), torch.randn(6, 12).double())
    labels = torch.arange(6) % 4
    whole = haframe_loss(seen, labels, alpha=1.0)
    entropy = losses.cross_entropy(seen.logits, labels)
    loss = built("haframe", {"alpha": 0.8, "schedule": "linear_increase"})
    assert isinstance(loss, FeatureLoss)
    assert loss.scheduled
    for progress, weight in [(0.0, 0.0), (0.25, 0.2), (1.0, 0.8)]:
        found = loss.at(progress)(seen, labels)
        torch.testing.assert_close(found, (1 - weight) * entropy + weight * whole)
    quick = built("haframe", {"schedule": "cosine", "period": 0.5, "alpha": 1.0})
    torch.testing.assert_close(quick.at(0.25)(seen, labels), whole)
    assert not built("dot_regression", {}).scheduled


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("label_smoothing", {"alpha": 1.0}, r"'alpha': .*less than 1, found 1.0"),
        ("label_smoothing", {"alpha": -0.1}, r"'alpha': .*or equal to 0"),
        ("label_relaxation", {"alpha": 1.0}, r"'alpha': .*less than 1, found 1.0"),
        ("label_relaxation", {"alfa": 0.1}, r"no option 'alfa' \(did you mean 'alpha'\?\)"),
        ("mse", {"target": "plus_minus"}, r"'target': .*'one_hot' or 'signed'"),
        ("margin", {"kappa": -1.0}, r"'kappa': .*greater than or equal to 0"),
        ("margin", {"kappa": math.inf}, r"'kappa'"),
        ("dot_regression", {"alpha": 0.1}, r"no option 'alpha'; valid: none"),
        ("haframe", {"alpha": 1.1}, r"'alpha': .*less than or equal to 1"),
        ("haframe", {"schedule": "linear"}, r"'schedule': .*'linear_increase'"),
        ("haframe", {"period": 0.0}, r"'period': .*greater than 0"),
        ("haframe", {"progress": 0.5}, r"no option 'progress'.*; valid: alpha, schedule, period"),
    ],
)
def test_wrong_options_are_refused_before_training(name, options, why):
    with pytest.raises(ConfigError, match=why):
        built(name, options)


def test_every_registered_loss_is_tested_here():
    tested = {name for name, *_ in OF_LOGITS} | {name for name, _ in OF_FEATURES} | {"soft_labels"}
    assert tested == set(LOSSES.names())
