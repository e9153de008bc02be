"""A faster copy answers as the user's own model, or the user's own model is attacked."""

import contextlib
import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nc.config import Component, ModelConfig
from robust_nc.evaluation import acceleration
from robust_nc.evaluation.acceleration import (
    Accelerated,
    Padded,
    Variant,
    accelerate,
    compile_padded,
    fastest,
    lowered,
)
from robust_nc.evaluation.folding import Affine, fold
from robust_nc.exceptions import InputError
from robust_nc.models.build import build_model
from robust_nc.runtime import full_precision, untouched
from robust_nc.threat import Ball

SHAPE = (3, 8, 8)
BALL = Ball("Linf", 0.03)
CPU = torch.device("cpu")
NORMS = nn.modules.batchnorm._BatchNorm  # synchronised ones too


class As(nn.Module):
    """A function of the parts of a model."""

    def __init__(self, rule: Callable[[nn.Module, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.rule = rule
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, images: Tensor) -> Tensor:
        return self.rule(self, images)


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """Statistics and weights such that a batch norm left out would be seen."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, NORMS) and part.running_mean is not None:
                part.running_mean.normal_(generator=draws)
                part.running_var.uniform_(0.3, 3.0, generator=draws)
                for parameter in part.parameters():
                    parameter.uniform_(-1.5, 1.5, generator=draws)
    return model.eval().requires_grad_(False)


def images(count: int = 6) -> Tensor:
    return torch.rand((count, *SHAPE), generator=torch.Generator().manual_seed(1))


def labels(count: int = 6) -> Tensor:
    return torch.arange(count) % 4


def head(width: int = 8) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 4))


def norms(model: nn.Module | None) -> int:
    assert model is not None
    return sum(isinstance(part, (NORMS, Affine)) for part in model.modules())


def convolutional(*layers: nn.Module) -> nn.Module:
    return lively(nn.Sequential(*layers, nn.ReLU(inplace=True), head()))


def built(backbone: str) -> nn.Module:
    part = Component(name=backbone)
    return lively(build_model(ModelConfig(num_classes=4, image_shape=SHAPE, backbone=part)))


def small() -> nn.Module:
    return built("small_cnn")


def with_norm(*layers: nn.Module) -> nn.Module:
    return convolutional(*layers, nn.BatchNorm2d(8))


def flat(*layers: nn.Module) -> nn.Module:
    return lively(nn.Sequential(nn.Flatten(), *layers, nn.ReLU(), nn.Linear(16, 4)))


def sequence(*layers: nn.Module) -> nn.Module:
    return lively(nn.Sequential(nn.Flatten(2), *layers))


def shared() -> nn.Module:
    """One convolution called twice, one batch norm called twice, and a pair that is called once."""

    def rule(own: nn.Module, points: Tensor) -> Tensor:
        twice = own.norm(own.twice(own.twice(points)))
        return own.head(own.pair(own.both(own.first(twice)) + own.both(own.second(twice))))

    pair = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
    return lively(
        As(
            rule,
            twice=nn.Conv2d(3, 3, 3, padding=1),
            norm=nn.BatchNorm2d(3),
            first=nn.Conv2d(3, 8, 1),
            second=nn.Conv2d(3, 8, 1),
            both=nn.BatchNorm2d(8),
            pair=pair,
            head=head(),
        )
    )


def shortcut(read: Callable[[Tensor], Tensor]) -> nn.Module:
    """A convolution's output goes to its batch norm, and past it; a second pair is ordinary."""

    def rule(own: nn.Module, points: Tensor) -> Tensor:
        raw = own.stem(points)
        return own.head(own.pair(own.norm(raw) + read(raw)))

    pair = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    return lively(As(rule, stem=nn.Conv2d(3, 8, 1), norm=nn.BatchNorm2d(8), pair=pair, head=head()))


def hooked() -> nn.Module:
    layer = nn.Conv2d(3, 8, 3)
    layer.register_forward_hook(lambda *call: call[2].tanh())
    return convolutional(layer, nn.BatchNorm2d(8))


class Standardised(nn.Conv2d):
    def forward(self, points: Tensor) -> Tensor:
        return F.conv2d(points, self.weight / self.weight.norm(), self.bias)


class Bounded(nn.BatchNorm2d):
    def forward(self, points: Tensor) -> Tensor:
        return super().forward(points).square()


def bounded() -> nn.Module:
    return convolutional(nn.Conv2d(3, 8, 3), Bounded(8))


def changed_in_place() -> nn.Module:
    def rule(own: nn.Module, points: Tensor) -> Tensor:
        return own.head(own.norm(own.layer(points).relu_()))

    return lively(As(rule, layer=nn.Conv2d(3, 8, 3), norm=nn.BatchNorm2d(8), head=head()))


def plain_statistics() -> nn.Module:
    return convolutional(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False))


FOLDING = {
    "conv": (lambda: with_norm(nn.Conv2d(3, 8, 3)), 0),
    "no-bias": (lambda: with_norm(nn.Conv2d(3, 8, 3, bias=False)), 0),
    "plain-norm": (lambda: convolutional(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False)), 0),
    "groups": (lambda: with_norm(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 8, 3, groups=2)), 0),
    "transposed": (
        lambda: with_norm(nn.Conv2d(3, 6, 1), nn.ConvTranspose2d(6, 8, 3, stride=2, groups=2)),
        0,
    ),
    "synchronised": (lambda: convolutional(nn.Conv2d(3, 8, 3), nn.SyncBatchNorm(8)), 0),
    "reflected": (lambda: with_norm(nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect")), 0),
    "linear": (lambda: flat(nn.Linear(192, 16, bias=False), nn.BatchNorm1d(16)), 0),
    "conv1d": (
        lambda: sequence(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(248, 4)),
        0,
    ),
    "small": (small, 0),
    # The first norm of each block follows a sum; so does the last norm.
    "preact": (lambda: built("preact_resnet18"), 9),
    "shared": (shared, 2),
    "shortcut": (lambda: shortcut(torch.tanh), 1),
    "weight-norm": (
        lambda: with_norm(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3))),
        1,
    ),
    "hooked": (hooked, 1),
    "own-forward": (lambda: with_norm(Standardised(3, 8, 3)), 1),
    "own-norm": (bounded, 1),
    "in-place": (changed_in_place, 1),
    # The batch norm's channels are the second axis, the linear layer's outputs the third.
    "wide-linear": (
        lambda: sequence(nn.Linear(64, 3), nn.BatchNorm1d(3), nn.Flatten(), nn.Linear(9, 4)),
        1,
    ),
    "no-statistics": (plain_statistics, 1),
}
KEPT = (bounded, plain_statistics)  # batch norms that do more than to scale and shift


def logits_and_gradient(model: nn.Module, points: Tensor) -> tuple[Tensor, Tensor]:
    leaf = points.clone().requires_grad_()
    logits = model(leaf)
    (gradient,) = torch.autograd.grad(logits.square().sum(), leaf)
    return logits.detach(), gradient


def assert_alike(fast: nn.Module, own: nn.Module, *, count: int = 6, within: float = 1e-4) -> None:
    for found, wanted in zip(
        logits_and_gradient(fast, images(count)),
        logits_and_gradient(own, images(count)),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted, rtol=within, atol=within)


def accelerated(model: nn.Module, ball: Ball = BALL) -> Accelerated:
    with torch.no_grad():
        logits = model(images())
    with untouched(model):
        return accelerate(model, images(), labels(), ball, logits)


@pytest.mark.parametrize(("build", "left"), FOLDING.values(), ids=FOLDING.keys())
def test_the_faster_copy_is_taken_and_the_model_untouched(
    build: Callable[[], nn.Module], left: int
) -> None:
    torch.manual_seed(0)
    model = build().requires_grad_(True)
    before = copy.deepcopy(model.state_dict())
    parts = {name: dict(vars(part)) for name, part in model.named_modules()}
    tables = {name: dict(part._modules) for name, part in model.named_modules()}
    with torch.no_grad():
        wanted = model(images())
    folded = fold(model, images(2))
    assert norms(folded) == left
    for own, fast in zip(*(logits_and_gradient(m, images()) for m in (model, folded)), strict=True):
        assert (fast - own).abs().max() <= 1e-5 * (own.max() - own.min())
    found = accelerated(model)
    assert not found.warnings
    assert ("folded" in found.names) == (build not in KEPT)
    assert (found.model is model) == (not found.names)
    assert torch.equal(wanted, model(images()).detach())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
        assert value.stride() == before[name].stride()
    for name, part in model.named_modules():
        assert vars(part) == parts[name]
        assert part._modules == tables[name]
        assert not part.training
    for parameter in model.parameters():
        assert parameter.requires_grad
        assert parameter.grad is None
    if found.names:
        assert not any(parameter.requires_grad for parameter in found.model.parameters())
        assert_alike(found.model, model)


def test_the_layout_changes_last_and_both_layouts_can_be_chosen() -> None:
    found = accelerated(small())
    assert found.names == ("folded", "channels_last")
    assert [variant.names for variant in found.variants] == [found.names, ("folded",)]
    bare = convolutional(nn.Conv2d(3, 8, 3))
    assert accelerated(bare).names == ("channels_last",)
    assert accelerated(flat(nn.Linear(192, 16))).names == ()


def test_a_view_that_needs_the_usual_layout_drops_the_other() -> None:
    def rule(own: nn.Module, points: Tensor) -> Tensor:
        return own.head(own.features(points).view(len(points), -1))

    features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    found = accelerated(lively(As(rule, features=features, head=nn.Linear(288, 4))))
    assert found.names == ("folded",)
    assert not found.warnings


def test_what_the_graph_does_not_show_is_found_by_comparing() -> None:
    model = shortcut(torch.detach)
    assert norms(fold(model, images())) == 0
    found = accelerated(model)
    assert found.model is model
    assert found.names == ()
    assert not found.variants
    (warning,) = found.warnings
    assert warning.name == "acceleration-dropped"
    assert "folded" in warning.message


def test_what_differs_under_attack_only_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that is right on the clean probes, and wrong as soon as a pixel has moved."""
    model, clean = small(), images()

    def wrong(model: nn.Module, *_: Tensor) -> nn.Module:
        def change(part: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
            return output + 0.01 * (args[0].detach() - clean).abs().sum((1, 2, 3))[:, None]

        twin = copy.deepcopy(model)
        twin.register_forward_hook(change)
        return twin

    monkeypatch.setattr(acceleration, "fold", wrong)
    assert accelerated(model, Ball("Linf", 0.0)).names
    found = accelerated(model)
    assert found.model is model
    assert [warning.name for warning in found.warnings] == ["acceleration-dropped"]


def uncopied() -> nn.Module:
    model = convolutional(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    model.generator = (each for each in range(3))
    return model


def randomised() -> nn.Module:
    def rule(own: nn.Module, points: Tensor) -> Tensor:
        return own.body(points + 0.1 * torch.rand_like(points))

    return As(rule, body=small()).eval()


def detached() -> nn.Module:
    return As(lambda own, points: own.body(points.detach()), body=small()).eval()


def raising_on_copies() -> nn.Module:
    model = small()

    def rule(own: nn.Module, points: Tensor) -> Tensor:
        if own.body is not model:
            raise ValueError("a copy")
        return own.body(points)

    return As(rule, body=model).eval()


@pytest.mark.parametrize("build", [uncopied, randomised, raising_on_copies, detached])
def test_a_model_that_cannot_be_copied_faithfully_is_attacked_itself(
    build: Callable[[], nn.Module],
) -> None:
    model = build()
    logits = model(images()).detach()
    state = torch.get_rng_state()
    with untouched(model):
        found = accelerate(model, images(), labels(), BALL, logits)
    if build is not detached:
        assert fold(model, images()) is None
    assert torch.equal(torch.get_rng_state(), state)
    assert found.model is model
    assert found.names == ()
    assert not found.warnings


class Laboured(nn.Module):
    """Repeats its work, and runs out of memory above a batch size."""

    def __init__(self, times: int = 1, *, most: int = 10**9, text: str = "") -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), head(16))
        self.times = times
        self.most = most
        self.text = text

    def forward(self, points: Tensor) -> Tensor:
        if len(points) > self.most:
            raise RuntimeError(self.text) if self.text else torch.OutOfMemoryError
        return torch.stack([self.layers(points) for _ in range(self.times)]).mean(0)


def timed(own: nn.Module, fast: nn.Module, *, sizes: tuple[int, ...] = (16,)) -> tuple[str, int]:
    variant = Variant(fast, ("folded",))
    given = Accelerated(*variant, variants=(variant,)) if fast is not own else Accelerated(own, ())
    choice = fastest(own, given, images(), labels(), batch_sizes=sizes, seconds=20)
    assert choice.model is (fast if choice.names else own)
    return "fast" if choice.names else "own", choice.batch_size


def test_the_faster_model_is_chosen() -> None:
    assert timed(Laboured(20), Laboured(1)) == ("fast", 16)
    assert timed(Laboured(1), Laboured(20)) == ("own", 16)


@pytest.mark.parametrize("text", ["", "CUDA out of memory. Tried to allocate 2 GiB"])
def test_a_batch_size_beyond_the_memory_is_dropped(text: str) -> None:
    other = Laboured(most=8, text="shapes do not fit")
    with pytest.raises(RuntimeError, match="do not fit"):
        timed(other, other, sizes=(8, 64))
    model = Laboured(most=8, text=text)
    assert timed(model, model, sizes=(64, 8)) == ("own", 8)
    assert timed(model, model, sizes=(64, 32)) == ("own", 32)  # the least of them, where none fits
    own, fast = Laboured(20), Laboured(1, most=8, text=text)
    assert timed(own, fast, sizes=(16,)) == ("own", 16)
    assert timed(own, fast, sizes=(16, 8)) == ("fast", 8)


def test_what_cannot_be_timed_in_time_is_left_out() -> None:
    model, calls = Laboured(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    given = Accelerated(model, ())
    fastest(model, given, images(), labels(), batch_sizes=(10**9, 2, 4), seconds=0.0)
    assert len(calls) == 1


def test_a_choice_needs_images_and_sizes() -> None:
    fast = Accelerated(Laboured(), ())
    for points, sizes in ((images(0), (4,)), (images(), ()), (images(), (0,))):
        with pytest.raises(InputError, match="at least 1"):
            fastest(fast.model, fast, points, labels(len(points)), batch_sizes=sizes, seconds=0.1)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_answers_alike(backend: str) -> None:
    model = convolutional(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))  # no checked annotations
    fast = compile_padded(model, 4, backend=backend)
    for count in (1, 3, 4, 6):
        assert_alike(fast, model, count=count)
    assert fast(images(0)).shape == (0, 4)


def test_a_compiled_model_is_chosen_where_it_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Laboured(20)
    logits = own(images()).detach()
    probes = acceleration.Probes(images(), labels(), logits, BALL)
    given = Accelerated(own, (), probes=probes)
    monkeypatch.setattr(acceleration, "_COMPILING", {"cpu"})
    for change, names in ((0.0, ("compiled",)), (0.1, ())):
        graph = Laboured(1)
        graph.load_state_dict(own.state_dict())
        graph.layers[-1][-1].bias.data[0] += change
        made = Padded(graph, 16, plain=own)
        monkeypatch.setattr(acceleration, "compile_padded", lambda model, size, made=made: made)
        choice = fastest(own, given, images(), labels(), batch_sizes=(16,), seconds=100)
        assert choice.names == names
        assert fastest(own, given, images(), labels(), batch_sizes=(16,), seconds=20).model is own


def flags() -> tuple[bool, ...]:
    cuda = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    return (*cuda, torch.is_autocast_enabled("cpu"))


@pytest.mark.parametrize(
    ("precision", "inside"),
    [
        ("float32", (False, False, False)),
        ("tf32", (True, True, False)),
        ("bf16", (False, False, True)),
    ],
)
def test_a_lower_precision_ends_with_its_block(
    precision: acceleration.Precision, inside: tuple[bool, ...]
) -> None:
    before = flags()
    with full_precision():
        outside = flags()
        with contextlib.suppress(KeyError), lowered(precision, CPU):
            assert flags() == inside
            product = torch.rand(4, 4) @ torch.rand(4, 4)
            assert product.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)
            raise KeyError
        assert flags() == outside
    assert flags() == before
