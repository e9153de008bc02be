"""Gradient outer products: closed forms, finite differences, and what a model is left as."""

import copy
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers_models import make, some_images, warmed_up
from reference import agop as oracle
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nc.exceptions import InputError
from robust_nc.geometry.agop import input_agop
from robust_nc.geometry.feature_matrices import layer_features
from robust_nc.geometry.svd_argument import svd_argument
from robust_nc.profiling.optional_rows import agop_rows
from robust_nc.record import tidy

NAMES = ("nfm_agop", "nfm_agop_root", "nfm_agop_centred", "nfm_agop_root_centred")
SHAPE = (1, 3, 3)


def dense(*sizes: int, between: Callable[[], nn.Module] | None = None, seed: int = 0) -> nn.Module:
    """Fully connected, float64, drawn from a seed."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), between() if between else nn.Identity()]
    return redrawn(nn.Sequential(*layers[:-1]), seed)


def redrawn(model: nn.Module, seed: int) -> nn.Module:
    source = torch.Generator().manual_seed(seed)
    for parameter in model.double().parameters():
        draws = torch.randn(parameter.shape, generator=source, dtype=torch.float64)
        parameter.data.copy_(draws / parameter[0].numel() ** 0.5)
    return model


def black_box(model: nn.Module, shape: tuple[int, ...]) -> Callable[[np.ndarray], np.ndarray]:
    def function(point: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(torch.from_numpy(point).view(1, *shape))[0].numpy()

    return function


def weights_of(model: nn.Module) -> list[np.ndarray]:
    return [m.weight.detach().numpy() for m in model if isinstance(m, nn.Linear)]


# The input


def test_a_linear_model_has_its_weights_as_agop() -> None:
    model = dense(9, 4)
    weight = weights_of(model)[0]
    found = input_agop(model, some_images(7, SHAPE), top=6)
    assert found.trace == pytest.approx(np.sum(weight**2), rel=1e-12)
    wanted = [*np.linalg.svd(weight)[1] ** 2, 0, 0]
    np.testing.assert_allclose(found.eigenvalues, wanted, rtol=1e-12, atol=1e-12)
    assert (found.num_examples, found.dim, dict(found.notes)) == (7, 9, {})


def test_a_network_agrees_with_finite_differences() -> None:
    model, images = dense(9, 6, 3, between=nn.Tanh), some_images(5, SHAPE)
    outer = oracle.agop(black_box(model, SHAPE), images.double().flatten(1).numpy())
    found = input_agop(model, images, top=9)
    assert found.trace == pytest.approx(np.trace(outer), rel=1e-8)
    wanted = np.linalg.eigvalsh(outer)[::-1]
    np.testing.assert_allclose(found.eigenvalues, wanted, rtol=1e-7, atol=1e-9)


def test_chunks_change_nothing() -> None:
    model = warmed_up(make("small_cnn", shape=(1, 8, 8), num_classes=4))
    images = some_images(8, (1, 8, 8))
    whole, cut = (input_agop(model, images, batch_size=size) for size in (None, 3))
    assert cut.trace == pytest.approx(whole.trace, rel=1e-5)
    torch.testing.assert_close(cut.eigenvalues, whole.eigenvalues, rtol=1e-5, atol=1e-9)
    layers, again = (layer_features(model, images, batch_size=size) for size in (None, 3))
    for name in layers:
        for measure in NAMES[:2]:
            value = getattr(layers[name], measure)
            assert getattr(again[name], measure) == pytest.approx(value, abs=1e-5)


def test_the_krylov_route_finds_what_the_whole_matrix_has() -> None:
    model = redrawn(nn.Sequential(nn.Flatten(), nn.Linear(432, 40), nn.Tanh(), nn.Linear(40, 5)), 1)
    images = some_images(12, (3, 12, 12))
    exact = input_agop(model, images)
    state = torch.get_rng_state()
    narrow = [input_agop(model, images, memory=2**20, seed=seed) for seed in (0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    assert not exact.notes
    for found in narrow:
        assert found.trace == pytest.approx(exact.trace, rel=1e-12)
        torch.testing.assert_close(found.eigenvalues, exact.eigenvalues, rtol=1e-3, atol=0)
        assert "Krylov" in found.notes["eigenvalues"]
        assert "not converged" not in found.notes["eigenvalues"]


def test_what_has_not_converged_is_said() -> None:
    model = redrawn(nn.Sequential(nn.Flatten(), nn.Linear(768, 300)), 0)
    few = input_agop(model, some_images(2, (3, 16, 16)), top=1, memory=2**18 + 2**17)
    assert few.notes["eigenvalues"].startswith("not converged")


# Layers


@pytest.mark.parametrize(
    ("sizes", "activation"),
    [((9, 4, 6, 3), "tanh"), ((9, 12, 5, 4), "relu in place"), ((9, 4, 6, 3), "none")],
)
def test_layers_agree_with_finite_differences(sizes: tuple[int, ...], activation: str) -> None:
    between = {"tanh": nn.Tanh, "relu in place": lambda: nn.ReLU(inplace=True), "none": None}
    model = dense(*sizes, between=between[activation])
    initial = dense(*sizes, between=between[activation], seed=9)
    images = some_images(6, SHAPE)
    found = layer_features(model, images, initial=initial)
    assert list(found) == ["1", "3", "5"]
    before = {name: module.weight for name, module in initial.named_modules() if name in found}
    for name, layer in found.items():
        rest = model[int(name) :]
        with torch.no_grad():
            reads = model[: int(name)](images.double()).clone()
        outer = oracle.agop(black_box(rest, (reads.shape[1],)), reads.numpy())
        weight = rest[0].weight.detach().numpy()
        wanted = oracle.correlations(weight, before[name].detach().numpy(), outer)
        assert layer.measures() == pytest.approx(wanted, abs=1e-7)
        assert layer.shape == weight.shape
    assert found["5"].nfm_agop == pytest.approx(1, abs=1e-12)
    assert "by construction" in found["5"].notes["nfm_agop"]
    assert not found["1"].notes


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_is_linear_on_its_patches(stride: int) -> None:
    convolution = nn.Conv2d(2, 3, 2, stride=stride, padding=1)
    places = 25 if stride == 1 else 9
    model = nn.Sequential(convolution, nn.Tanh(), nn.Flatten(), nn.Linear(3 * places, 4))
    model, initial = redrawn(copy.deepcopy(model), 0), redrawn(copy.deepcopy(model), 5)
    images = some_images(3, (2, 4, 4))
    weight, bias = model[0].weight.detach().flatten(1), model[0].bias.detach()

    def of_patches(patches: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            output = torch.from_numpy(patches) @ weight.T + bias  # (places, out)
            side = math.isqrt(places)
            return model[1:](output.T.reshape(1, 3, side, side))[0].numpy()

    patches = F.unfold(images.double(), 2, padding=1, stride=stride).transpose(1, 2).numpy()
    outer = oracle.patch_agop(of_patches, patches)
    found = layer_features(model, images, initial=initial)["0"]
    start = initial[0].weight.detach().flatten(1).numpy()
    wanted = oracle.correlations(weight.numpy(), start, outer)
    assert found.measures() == pytest.approx(wanted, abs=1e-7)
    assert found.shape == (3, 8)


class Tokens(nn.Module):
    """A linear layer over four tokens of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(9, 5)
        self.out = nn.Linear(20, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.out(torch.tanh(self.mix(images.reshape(len(images), 4, 9))).flatten(1))


def test_tokens_are_places() -> None:
    model, images = redrawn(Tokens(), 0), some_images(3, (1, 6, 6))
    weight = model.mix.weight.detach()

    def of_tokens(tokens: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            hidden = torch.tanh(torch.from_numpy(tokens) @ weight.T + model.mix.bias)
            return model.out(hidden.reshape(1, -1))[0].numpy()

    outer = oracle.patch_agop(of_tokens, images.double().reshape(3, 4, 9).numpy())
    found = layer_features(model, images)["mix"].nfm_agop
    assert found == pytest.approx(oracle.pearson((weight.T @ weight).numpy(), outer), abs=1e-8)


@pytest.mark.parametrize(("head", "normalise"), [("linear", False), ("etf", True)])
def test_heads_are_layers(head: str, normalise: bool) -> None:
    model = warmed_up(make("mlp", head, shape=SHAPE, num_classes=4, normalise_features=normalise))
    initial = make("mlp", head, shape=SHAPE, num_classes=4, seed=1, normalise_features=normalise)
    found = layer_features(model, some_images(6, SHAPE), initial=initial)
    vertices = model.head.vertices().detach().double().numpy()
    nfm = vertices.T @ vertices
    assert found["head"].shape == (4, 256)
    assert found["head"].nfm_agop == pytest.approx(1, abs=1e-12)
    assert found["head"].nfm_agop_root == pytest.approx(
        oracle.pearson(nfm, oracle.root(nfm)), abs=1e-6
    )
    assert list(found)[:2] == ["backbone.layers.0.0", "backbone.layers.1.0"]
    hidden = found["backbone.layers.1.0"]
    assert 0 < (hidden.nfm_agop or 0) < 1
    same = layer_features(model, some_images(6, SHAPE), initial=model)
    assert {layer.nfm_agop_centred for layer in same.values()} == {None}
    assert "initial ones" in same["head"].notes["nfm_agop_root_centred"]


class Odd(nn.Module):
    """Everything that has no value: shared, idle, grouped, of another kind, per query."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(2, 2, 1, groups=2)
        self.other = nn.Conv1d(2, 2, 1)
        self.shared = nn.Linear(18, 18)
        self.idle = nn.Linear(3, 3)
        self.queries = nn.Linear(3, 18)
        self.plain = nn.Linear(18, 3)
        self.detached = nn.Linear(18, 3)

    def forward(self, images: Tensor) -> Tensor:
        grouped = self.grouped(images).flatten(2)
        output = self.shared(torch.tanh(self.shared(self.other(grouped).flatten(1))))
        output = output + self.queries(torch.eye(3, dtype=images.dtype)).sum(0)
        return self.plain(output) + self.detached(output).detach()


def test_what_has_no_value_says_why() -> None:
    found = layer_features(redrawn(Odd(), 0), some_images(4, (2, 3, 3)))
    assert list(found) == ["grouped", "other", "shared", "idle", "queries", "plain", "detached"]
    reasons = {name: layer.notes.get("nfm_agop_root", "") for name, layer in found.items()}
    assert "several groups" in reasons["grouped"]
    assert "Conv1d" in reasons["other"]
    assert "ran 2 times" in reasons["shared"]
    assert "did not run" in reasons["idle"]
    assert "one row per image" in reasons["queries"]
    assert "entries" in reasons["detached"]
    assert reasons["plain"] == ""
    for name in set(found) - {"plain"}:
        assert found[name].measures() == dict.fromkeys(NAMES)


def test_layers_beyond_the_memory_have_no_values() -> None:
    model, images = dense(9, 40, 40, 3, between=nn.Tanh), some_images(2, SHAPE)
    whole = layer_features(model, images)
    found = layer_features(model, images, memory=2**15)
    assert found["3"].nfm_agop is None
    assert "32,768 bytes" in found["3"].notes["nfm_agop"]
    assert found["1"].nfm_agop == pytest.approx(whole["1"].nfm_agop, abs=1e-9)


# The SVD argument


def labelled(count: int, num_classes: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    labels = torch.arange(count) % num_classes
    base = some_images(num_classes, SHAPE, seed=7)[labels]
    return 0.7 * base + 0.3 * some_images(count, SHAPE, seed=seed), labels


@pytest.mark.parametrize(("between", "batch_size"), [("plain", 5), ("norm", 64), ("in place", 5)])
def test_the_svd_argument_agrees_with_an_explicit_svd(between: str, batch_size: int) -> None:
    inner: dict[str, list[nn.Module]] = {
        "plain": [nn.Tanh()],
        "norm": [nn.BatchNorm1d(12), nn.Dropout(0.5), nn.ReLU(inplace=True)],
        "in place": [nn.ReLU(inplace=True)],
    }
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 12), *inner[between], nn.Linear(12, 3))
    images, labels = labelled(21, 3)
    redrawn(model, 0)
    model.train()(images.double())
    found = svd_argument(model, images, labels, num_classes=3, batch_size=batch_size)
    assert list(found) == ["1", str(len(model) - 1)]
    x = images.double().flatten(1).numpy()
    _, sizes, right = np.linalg.svd(model[1].weight.detach().numpy(), full_matrices=False)
    with torch.no_grad():
        after = model.eval()[: 2 + len(inner[between])](images.double()).numpy()
    number = labels.numpy()
    first = found["1"]
    assert first.features == pytest.approx(oracle.nc1_trace(x, number), rel=1e-9)
    assert first.linear == pytest.approx(oracle.nc1_trace(x @ right.T * sizes, number), rel=1e-9)
    assert first.activation == pytest.approx(oracle.nc1_trace(after, number), rel=1e-9)
    note = "with BatchNorm1d inside" if between == "norm" else ""
    assert first.notes.get("activation", "") == note
    last = found[str(len(model) - 1)]
    assert last.features == pytest.approx(first.activation, rel=1e-9)
    assert last.activation is None
    assert last.notes["activation"] == "no activation module follows directly"


def test_the_svd_argument_says_what_it_does_not_have() -> None:
    found = svd_argument(
        redrawn(Odd(), 0), torch.rand(4, 2, 3, 3), torch.arange(4) % 2, num_classes=2
    )
    assert "several times" in found["shared"].notes["features"]
    assert found["idle"].notes["linear"] == "did not run"
    assert "gave 3 outputs" in found["queries"].notes["features"]
    flat = svd_argument(
        dense(9, 3), torch.full((4, *SHAPE), 0.5), torch.arange(4) % 2, num_classes=2
    )
    assert flat["1"].features is None
    assert "coincide" in flat["1"].notes["features"]


# What users hand in, and what a model is left as


def measure(model: nn.Module, images: Tensor) -> list[object]:
    labels = torch.arange(len(images)) % 3
    rows = agop_rows(model, {"clean": images}, labels, num_classes=3)
    narrow = input_agop(model, images, top=2, memory=100_000)
    return [*(row["value"] for row in rows), *narrow.eigenvalues.tolist()]


def test_a_model_is_left_as_it_was_found() -> None:
    model = make("small_cnn", shape=(3, 8, 8), num_classes=3).train()
    model.backbone.block2.eval()
    model.backbone.block1[0].weight.requires_grad_(False)
    images = some_images(6, (3, 8, 8))
    state = copy.deepcopy(model.state_dict())
    flags = [module.training for module in model.modules()]
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    values = measure(model, images)
    with torch.no_grad():
        assert measure(model, images) == values
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        assert measure(model, images.clone()) == values
    assert [module.training for module in model.modules()] == flags
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert {parameter.grad for parameter in model.parameters()} == {None}
    assert not any(module._forward_hooks for module in model.modules())
    assert not images.requires_grad
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    logits = model.eval()(images)
    logits.sum().backward()
    assert model.head.weight.grad is not None


class Broken(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.linear = nn.Linear(9, 3)
        self.how = how

    def forward(self, images: Tensor) -> Tensor:
        logits = self.linear(images.flatten(1))
        if self.how == "steep":
            return logits + (images.flatten(1)[:, :3] * 0).sqrt() + (logits * 0).sqrt()
        return {"flat": logits.flatten(), "detached": logits.detach()}[self.how]


@pytest.mark.parametrize(
    ("how", "said"), [("flat", "logits"), ("detached", "no gradient"), ("steep", "not finite")]
)
def test_a_model_without_a_jacobian_is_refused(how: str, said: str) -> None:
    model, images = Broken(how).train(), some_images(2, SHAPE)
    for function in (input_agop, layer_features):
        with pytest.raises(InputError, match=said):
            function(model, images)
    assert model.training
    assert not model.linear._forward_hooks
    assert model.linear.weight.requires_grad


def test_arguments_that_cannot_be_used_are_refused() -> None:
    model, images = dense(9, 3), some_images(2, SHAPE)
    for function in (input_agop, layer_features):
        for wrong in ({"batch_size": 0}, {"memory": 0}):
            with pytest.raises(InputError, match="at least 1"):
                function(model, images, **wrong)
        with pytest.raises(InputError, match="empty"):
            function(model, images[:0])
        with pytest.raises(InputError, match="divide by 255"):
            function(model, images * 255)
    with pytest.raises(InputError, match="top"):
        input_agop(model, images, top=0)
    with pytest.raises(InputError, match="raise memory"):
        input_agop(model, images, memory=1000)
    for other in (dense(9, 4), dense(9), nn.Sequential(nn.Flatten(), nn.Conv2d(9, 3, 1))):
        with pytest.raises(InputError, match="same network before training"):
            layer_features(model, images, initial=other)
    for labels in (torch.tensor([0]), torch.tensor([0, 3])):
        with pytest.raises(InputError, match="labels"):
            svd_argument(model, images, labels, num_classes=3)
    with pytest.raises(InputError, match="batch_size"):
        svd_argument(model, images, torch.tensor([0, 1]), num_classes=3, batch_size=0)


# Rows


def test_rows_hold_every_value() -> None:
    model = warmed_up(make("mlp", shape=SHAPE, num_classes=3))
    images, labels = labelled(12, 3)
    conditions = {"clean": images, "attacked": (images + 0.2).clamp(0, 1)}
    rows = agop_rows(
        model,
        conditions,
        labels,
        num_classes=3,
        initial=make("mlp", shape=SHAPE, num_classes=3, seed=4),
    )
    frame = tidy(rows)
    assert not frame[frame.note == ""].value.isna().any()
    assert set(frame[frame.value.isna()].measure) <= {"svd_nc1_activation"}
    for condition, images in conditions.items():
        part = frame[frame.condition == condition]
        found = input_agop(model, images)
        assert part[part.measure == "agop_trace"].value.tolist() == [found.trace]
        layers = part[part.measure == "nfm_agop_root_centred"]
        assert layers.tap.tolist() == [*(f"backbone.layers.{i}.0" for i in range(3)), "head"]
        assert layers.depth.tolist() == [0, 1, 2, 3]
    svd = frame[frame.measure.str.startswith("svd")]
    assert set(svd.condition) == {"clean"}
    assert len(svd) == 9
    twice = tidy(agop_rows(model, conditions, labels, num_classes=3))
    assert twice[twice.measure == "nfm_agop_centred"].value.isna().all()
