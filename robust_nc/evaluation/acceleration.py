"""A faster copy of a user's model for the attack, checked against the model itself.

The attack spends nearly all of its time in the model. What is attacked may be a copy; what counts
is decided by the user's own model:

>>> import torch
>>> from robust_nc.threat import Ball
>>> convolution = torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten()
>>> model = torch.nn.Sequential(*convolution, torch.nn.Linear(144, 3)).eval()
>>> images, labels = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
>>> accelerate(model, images, labels, Ball("Linf", 0.1), model(images).detach()).names
('folded',)
"""

import copy
import statistics
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nc.evaluation.folding import AGREEMENT, agree, fold, is_fixed_norm
from robust_nc.evaluation.scoring import margins
from robust_nc.exceptions import InputError, unknown_name
from robust_nc.runtime.torch_state import (
    float32_products,
    full_precision,
    kept_draws,
    ran_out,
    usable_gradient,
)
from robust_nc.threat import Ball
from robust_nc.types import RemoteModel, Warned

Precision = Literal["float32", "tf32", "bf16"]

FOLDED, CHANNELS_LAST, COMPILED = "folded", "channels_last", "compiled"

GAIN = 0.03  # what a change must gain: timings of one thing differ by that much
COMPILE_SECONDS = 60.0  # what compiling may cost: not worth it where less time is granted
_COMPILING = {"cuda"}  # on a CPU it gained nothing beyond folding and layout
LOWER: tuple[Precision, ...] = ("bf16", "tf32")  # below float32, the likely faster one first
WORTH_LOWERING = 1.3  # how much faster a pass must be to begin in lower precision
COARSE_AGREEMENT = 0.1  # of the range of the logits: a few roundings to 8 bits
_ROUNDS = 12
_TIMED = 3  # passes in each precision, and one before them
_STANDING = 0.25  # of the probes, after one step
_FEW = 4  # images: what so few take in float32 is the cost of a call
_STEP_COST = 3.0  # of a call within an attack, over that of the model alone, at most
_CAST = {nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear}
_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16", "sve_bf16", "svebf16"}


class Variant(NamedTuple):
    """A model that answers as the user's does, and what was done to it."""

    model: nn.Module
    names: tuple[str, ...]


class Probes(NamedTuple):
    """Examples that candidates are tried on, with the logits `(P, K)` of the user's own model."""

    images: Tensor
    labels: Tensor
    logits: Tensor
    ball: Ball


class Accelerated(NamedTuple):
    """The model to attack: the user's own where nothing helps, then `names` is empty.

    `variants` are all models that agree with the user's own, without itself.
    """

    model: nn.Module
    names: tuple[str, ...]
    warnings: tuple[Warned, ...] = ()
    variants: tuple[Variant, ...] = ()
    probes: Probes | None = None


class AttackSetup(NamedTuple):
    """What was fastest: the model to attack, what was done to it, and how many items at a time."""

    model: nn.Module
    names: tuple[str, ...]
    batch_size: int


def accelerate(
    model: nn.Module, images: Tensor, labels: Tensor, ball: Ball, logits: Tensor
) -> Accelerated:
    """Return a faster copy of a model, with batch norms folded and channels last, where it agrees.

    `images` (P, C, H, W) are clean probes on the model's device, `labels` (P,), `logits` (P, K)
    what the model answered on them. The model is in eval mode and frozen, and stays as it is. A
    copy must agree with it to 1e-4 of the range of the logits, on the probes and on one step of
    size eps against the copy: that costs the copy 3 forwards and 1 backward, the model 1 forward.
    A model that cannot be copied, or is random, comes back itself.
    """
    probes = Probes(images, labels, logits.detach().float(), ball)
    unchanged = Accelerated(model, (), probes=probes)
    with full_precision(), kept_draws(images.device):
        refused: list[Variant] = []
        for variants in candidates(model, images, probes.logits):
            agrees = _tried(model, variants[0].model, probes)
            if agrees:
                best = variants[0]
                return Accelerated(best.model, best.names, _warnings(refused), variants, probes)
            if agrees is False:
                refused.append(variants[0])
        return unchanged._replace(warnings=_warnings(refused))


def candidates(
    model: nn.Module, images: Tensor, logits: Tensor | None = None
) -> Iterator[tuple[Variant, ...]]:
    """Yield faster copies, the fastest first, each with those that agree if it does.

    Only their layout differs. `images` and `logits` are as for `fold`; there are none where that
    returns None. Those of a model in another process were made there.
    """
    if isinstance(model, RemoteModel):
        yield from (tuple(Variant(*each) for each in group) for group in model.candidates(images))
        return
    twin = fold(model, images, logits)
    if twin is None:
        return
    folded = any(map(is_fixed_norm, model.modules()))
    plain = Variant(twin, (FOLDED,) if folded else ())
    convolutions = (nn.Conv2d, nn.ConvTranspose2d)
    weights = [part.weight for part in twin.modules() if isinstance(part, convolutions)]
    if any(not weight.is_contiguous(memory_format=torch.channels_last) for weight in weights):
        moved = copy.deepcopy(twin)
        moved.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        both = Variant(moved, (*plain.names, CHANNELS_LAST))
        yield (both, plain) if folded else (both,)
    if folded:
        yield (plain,)


def _tried(own: nn.Module, candidate: nn.Module, probes: Probes) -> bool | None:
    """Whether a candidate agrees on the probes, clean and attacked; None where it cannot run."""
    try:
        logits, attacked = _one_step(candidate, probes)
        if not agree(logits, probes.logits):
            return False
        found = _logits(candidate, attacked)
    except Exception:  # a view of a layout that is not there, memory, whatever a model raises
        return None
    return agree(found, _logits(own, attacked))


def _one_step(model: nn.Module, probes: Probes) -> tuple[Tensor, Tensor]:
    """Logits of the probes, and the probes after one step of size eps against their margin."""
    leaf = probes.images.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(leaf).float()
        (gradient,) = torch.autograd.grad(margins(logits, probes.labels).sum(), leaf)
    moved = probes.images + probes.ball.eps * probes.ball.steepest(usable_gradient(gradient, leaf))
    return logits.detach(), probes.ball.project(moved, probes.images)


@torch.no_grad()
def _logits(model: nn.Module, images: Tensor) -> Tensor:
    logits: Tensor = model(images).float()
    return logits


def _warnings(refused: list[Variant]) -> tuple[Warned, ...]:
    if not refused:
        return ()
    tried = " and ".join(" + ".join(variant.names) for variant in refused)
    message = (
        f"a faster copy of the model ({tried}) differed from the model itself by more than "
        f"{AGREEMENT:g} of the range of the logits, and was not attacked in its place"
    )
    return (Warned("acceleration-dropped", message),)


class Padded(nn.Module):
    """Passes batches of any length through a model in batches of one size, filled with zeros.

    A model that was compiled for one shape then never sees another. Batches of at most half the
    size, the last ones or what memory allows, go through `plain`, if there is one.
    """

    def __init__(self, model: nn.Module, size: int, plain: nn.Module | None = None) -> None:
        super().__init__()
        self.model = model
        self.size = size
        self.plain = plain

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(N, K)` of images `(N, C, H, W)`."""
        if self.plain is not None and 2 * len(images) <= self.size:
            logits: Tensor = self.plain(images)
            return logits
        found = []
        for piece in torch.split(images, self.size):
            missing = piece.new_zeros((self.size - len(piece), *piece.shape[1:]))
            full = torch.cat([piece, missing]) if len(missing) else piece
            found.append(self.model(full)[: len(piece)])
        return torch.cat(found)


def compile_padded(model: nn.Module, size: int, *, backend: str = "inductor") -> Padded:
    """Return a model under `torch.compile` for batches of one size; other lengths are padded.

    It is compiled when it is first called, once with and once without a gradient.
    """
    graph: Any = torch.compile(model, dynamic=False, backend=backend)
    return Padded(graph, size, plain=model)


def fastest(
    own: nn.Module,
    fast: Accelerated,
    images: Tensor,
    labels: Tensor,
    *,
    batch_sizes: tuple[int, ...],
    seconds: float,
) -> AttackSetup:
    """Time models and batch sizes, and return what is fastest per image, forward and gradient.

    Begins with `fast.model` at `batch_sizes[0]`, and leaves what it has only for a gain of 3 %.
    Images `(P, C, H, W)` with labels `(P,)` are repeated to fill a batch. Takes about `seconds`:
    one pass at the smallest size is always made; what would take longer is left out, and so is
    what runs out of memory. On CUDA, with 60 seconds or more, also under `torch.compile`.
    Raises `InputError` without images or batch sizes.
    """
    if not len(images) or not batch_sizes or min(batch_sizes) < 1:
        raise InputError(
            "timing needs images to time and batch sizes of at least 1, "
            f"found {len(images)} images and batch sizes {batch_sizes}"
        )
    worth = images.device.type in _COMPILING and seconds >= COMPILE_SECONDS
    worth = worth and not isinstance(own, RemoteModel)
    probes = fast.probes if worth else None
    share = seconds / (2 if probes is None else 4)
    watch = _Stopwatch(images, labels)
    with kept_draws(images.device):
        best = AttackSetup(fast.model, fast.names, batch_sizes[0])
        sizes = [best._replace(batch_size=size) for size in sorted(set(batch_sizes))]
        best = watch.race(best, sizes, share)
        models = [Variant(own, ()), *fast.variants]
        best = watch.race(best, [AttackSetup(*each, best.batch_size) for each in models], share)
        if probes is not None:
            graph = compile_padded(best.model, best.batch_size)
            alone = Padded(graph.model, graph.size)  # the few probes too pass through the graph
            if _tried(own, alone, probes):
                rival = AttackSetup(graph, (*best.names, COMPILED), best.batch_size)
                best = watch.race(best, [rival], share)
    return best


def lower_precision(
    model: nn.Module, probes: Probes, images: Tensor, labels: Tensor, *, passes: float, calls: float
) -> Precision:
    """Return the precision in which a pass is fastest, where that is worth it; or "float32".

    A pass is a forward and a gradient of images `(B, C, H, W)`. It must gain 1.3 times, and so many
    `passes` more than as many `calls` cost that attack again in float32 the few that are near. A
    precision in which the model cannot run is left out, and one in which its answers to the probes,
    clean or after one step, are no longer those of float32 to a tenth of the range of the logits.
    Takes 8 passes, 12 on CUDA; none where that step leaves less than a quarter of the probes, since
    what is undefended falls soon.
    """
    device = images.device
    watch = _Stopwatch(images, labels)
    full = AttackSetup(model, (), len(images))
    few = full._replace(batch_size=min(_FEW, len(images)))
    with kept_draws(device):
        _, attacked = _one_step(model, probes)
        found = _logits(model, attacked)
        asked = ((probes.images, probes.logits), (attacked, found))
        stands = (found.argmax(1) == probes.labels).float().mean()
        kinds = [kind for kind in LOWER if _able(kind, device) and _roughly(model, kind, asked)]
        if stands < _STANDING or not kinds:
            return "float32"
        times: dict[Precision, list[float]] = {kind: [] for kind in ("float32", *kinds)}
        for _ in range(_TIMED + 1):
            for kind, seconds in times.items():
                with lowered(kind, device):
                    seconds.append(watch.pass_of(full))
        call = _STEP_COST * min(watch.pass_of(few) for _ in range(_TIMED))
    paces = {kind: min(seconds[1:]) for kind, seconds in times.items()}
    best = min(paces, key=paces.__getitem__)
    gained = (paces["float32"] - paces[best]) * passes > call * calls
    return best if gained and WORTH_LOWERING * paces[best] <= paces["float32"] else "float32"


def _able(kind: Precision, device: torch.device) -> bool:
    return device.type == "cuda" if kind == "tf32" else not slow_bf16(device)


def _roughly(model: nn.Module, kind: Precision, asked: tuple[tuple[Tensor, Tensor], ...]) -> bool:
    """Whether a model answers in a lower precision about as it did in float32."""
    try:
        with lowered(kind, asked[0][0].device):
            return all(agree(_logits(model, x), y, COARSE_AGREEMENT) for x, y in asked)
    except Exception:  # an operator that there is not in this precision, memory, whatever
        return False


class _Stopwatch:
    """Times a forward and the gradient by the images, of models at batch sizes."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self._images = images
        self._labels = labels
        self._times: dict[AttackSetup, list[float]] = {}
        self._full: set[AttackSetup] = set()

    def race(self, current: AttackSetup, others: list[AttackSetup], seconds: float) -> AttackSetup:
        """Return the best median time per image, the current one unless another gains `GAIN`."""
        entries = sorted(dict.fromkeys([current, *others]), key=lambda entry: entry.batch_size)
        if len(entries) == 1:
            return current
        deadline = time.perf_counter() + seconds
        for _ in range(_ROUNDS):
            for entry in entries:  # in turn, so that a slow moment of the machine hits all alike
                if entry not in self._full and self._fits(entry, deadline):
                    self._time(entry)
        paces = {entry: self._pace(entry) for entry in entries if entry in self._times}
        if current in self._full:
            return min(paces, key=paces.__getitem__, default=entries[0])
        if current not in paces:  # too slow to be timed, so nothing is known against it
            return current
        best = min(paces, key=paces.__getitem__)
        return best if paces[best] <= (1 - GAIN) * paces[current] else current

    def _pace(self, entry: AttackSetup) -> float:
        """Median seconds per image, without the first pass, which sets things up, if it can."""
        times = self._times[entry]
        return statistics.median(times[1:] or times) / entry.batch_size

    def _fits(self, entry: AttackSetup, deadline: float) -> bool:
        settled = len(self._times.get(entry, ())) > 1  # a first pass may be far slower than others
        known = [entry] if settled else list(self._times)
        if not known:
            return True
        expected = entry.batch_size * min(self._pace(each) for each in known)
        return time.perf_counter() + expected <= deadline

    def _time(self, entry: AttackSetup) -> None:
        try:
            self._times.setdefault(entry, []).append(self.pass_of(entry))
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            self._full.add(entry)
            del self._times[entry]

    def pass_of(self, entry: AttackSetup) -> float:
        """Seconds of one pass."""
        rows = torch.arange(entry.batch_size, device=self._images.device) % len(self._images)
        images, labels = self._images[rows], self._labels[rows]
        self._wait()
        begin = time.perf_counter()
        one_pass(entry.model, images, labels)
        self._wait()
        return time.perf_counter() - begin

    def _wait(self) -> None:
        if self._images.is_cuda:
            torch.cuda.synchronize(self._images.device)


def one_pass(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Pass images `(N, C, H, W)` with labels `(N,)` forward and back, where there is a way back."""
    leaf = images.detach().requires_grad_()
    with torch.enable_grad():
        loss = F.cross_entropy(model(leaf).float(), labels, reduction="sum")
        if loss.requires_grad:
            torch.autograd.grad(loss, leaf, allow_unused=True)


def lowered(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Compute in a lower precision, inside `runtime.full_precision`; restored on the way out.

    "float32" changes nothing, "tf32" lets CUDA round the factors of products to 10 bits, "bf16" is
    autocast to bfloat16. Raises `UnknownNameError` for anything else.
    """
    if precision not in get_args(Precision):
        raise unknown_name("precision", precision, get_args(Precision))
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return float32_products("tf32") if precision == "tf32" else nullcontext()


def cast_once(model: nn.Module, images: Tensor) -> nn.Module:
    """Return a copy that holds the weights of its layers in bfloat16; autocast casts at each call.

    Only where it answers images `(P, C, H, W)` under autocast as the model does, to the bit.
    """
    try:
        with kept_draws(images.device), torch.no_grad(), lowered("bf16", images.device):
            cast = copy.deepcopy(model)
            for layer in cast.modules():
                if type(layer) in _CAST:
                    layer.to(torch.bfloat16)
            return cast if torch.equal(cast(images), model(images)) else model
    except Exception:  # it cannot be copied, reads its weights elsewhere too, memory
        return model


def slow_bf16(device: torch.device) -> bool:
    """Whether a device has no instructions for bfloat16, so that it is slower than float32."""
    if device.type == "cuda":
        return not torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and not _BF16_FLAGS & _cpu_flags()


def _cpu_flags() -> set[str]:
    """Names of the CPU's instruction sets, as torch or else Linux lists them."""
    listed = getattr(torch.cpu, "get_capabilities", None)
    if listed is not None:
        return {name for name, present in listed().items() if present is True}
    table = Path("/proc/cpuinfo")
    return set(table.read_text().split()) if table.is_file() else set()
