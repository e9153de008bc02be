"""Randomness, devices and the state of a model while it is attacked.

Draws of the evaluation come from a counter hash, so that the draw for one example depends on its
id alone, never on its batch, its place in it, or how many machines share the work:

>>> import torch
>>> all_of_them = keyed_uniform(0, torch.arange(5), "pgd", 3)
>>> one_of_them = keyed_uniform(0, torch.tensor([3]), "pgd", 3)
>>> bool((all_of_them[3] == one_of_them[0]).all())
True
"""

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from robust_nc.exceptions import InputError

T = TypeVar("T", bound=Tensor)

# glibc hands idle memory back to the system, and asks for it anew, page by page, in the next step
# of an attack, until a block as large as it ever keeps (32 MiB) has once been freed. Not touched.
torch.empty(31 * 2**20, dtype=torch.uint8, device="cpu")

_PASSES = 64  # of which sums of gradients wait until they are looked at
_NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "cudnn_status_alloc_failed",
    "cublas_status_alloc_failed",
    "unable to find an engine",  # cuDNN, where no algorithm's workspace fits
    "bad_alloc",
)

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15, the increment of splitmix64, as int64
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def stream_key(seed: int, *purpose: object) -> int:
    """Hash (seed, purpose...) to an int64: independent streams for independent purposes."""
    text = "\x1f".join([str(int(seed)), *(str(part) for part in purpose)])
    return int.from_bytes(
        hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True
    )


def generator(seed: int, *purpose: object) -> torch.Generator:
    """Return a CPU generator of its own for (seed, purpose...)."""
    return torch.Generator().manual_seed(stream_key(seed, *purpose) & (2**63 - 1))


def _shift(bits: Tensor, places: int) -> Tensor:
    """Logical right shift (the operator on int64 is arithmetic)."""
    return (bits >> places).bitwise_and_((1 << (64 - places)) - 1)


def _mix(bits: Tensor) -> Tensor:
    """Finaliser of splitmix64 (Steele, Lea, Flood, OOPSLA 2014), in place; int64 wraps around."""
    bits.bitwise_xor_(_shift(bits, 30)).mul_(_MIX_1)
    bits.bitwise_xor_(_shift(bits, 27)).mul_(_MIX_2)
    return bits.bitwise_xor_(_shift(bits, 31))


def _keyed_bits(seed: int, ids: Tensor, stream: str, size: int) -> Tensor:
    rows = _mix(ids.to(torch.int64) * _GOLDEN + stream_key(seed, stream))
    columns = torch.arange(1, size + 1, dtype=torch.int64, device=ids.device) * _GOLDEN
    return _mix(rows[:, None] + columns)


def keyed_uniform(seed: int, ids: Tensor, stream: str, size: int) -> Tensor:
    """Uniform draws in [0, 1), float32 `(len(ids), size)`, on the device of `ids`.

    Row i depends on (seed, stream, ids[i]) only, and is the same to the bit on every device.
    """
    return _shift(_keyed_bits(seed, ids, stream, size), 40).to(torch.float32) * 2.0**-24


def keyed_normal(seed: int, ids: Tensor, stream: str, size: int) -> Tensor:
    """Standard normal draws, float32 `(len(ids), size)` (Box-Muller on `keyed_uniform`)."""
    half = (size + 1) // 2
    radius = torch.sqrt(-2 * torch.log1p(-keyed_uniform(seed, ids, f"{stream}/radius", half)))
    angle = 2 * math.pi * keyed_uniform(seed, ids, f"{stream}/angle", half)
    return torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], 1)[:, :size]


def default_device() -> torch.device:
    """Return the accelerator if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's first parameter or buffer (the CPU if it has none)."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def check_float64(device: torch.device) -> None:
    """Raise `InputError` for a device without float64, as Apple's (MPS)."""
    try:
        if device.type != "cpu":
            torch.empty(0, dtype=torch.float64, device=device)
    except TypeError as error:
        raise InputError(
            f"the device {device} has no float64, in which distances, projections and class means "
            "are computed; move the model and its images to the CPU"
        ) from error


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Bring a tensor to a device; from the CPU to another, the host does not wait for that one.

    It may be thrown away at once: what is not pinned is copied to a buffer of CUDA's before.
    """
    return tensor.to(device, non_blocking=device.type != "cpu")


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out; on a CPU it is a plain one with a text."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or any(words in str(error).lower() for words in _NO_MEMORY)


@contextlib.contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """Set how float32 products are computed everywhere: "ieee" or "tf32"; restored on the way out.

    By torch's older switches, or where a caller has used the newer ones, by those: torch refuses
    to read the older ones then, and a model that reads them must find them as it did outside.
    """
    try:
        before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32  # noqa: B018, raises where only the newer can be read
    except RuntimeError:
        with _by_backend(precision):
            yield
        return
    allowed, cpu = precision == "tf32", _cpu_products().fp32_precision
    try:
        _set_products("high" if allowed else "highest", allowed)
        yield
    finally:
        _set_products(*before)
        if _cpu_products().fp32_precision != cpu:  # "high" is also what CUDA alone may allow
            _cpu_products().fp32_precision = cpu


def _set_products(matmul: str, cudnn: bool) -> None:
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = cudnn


def _cpu_products() -> Any:
    backends: Any = torch.backends
    return backends.mkldnn.matmul


@contextlib.contextmanager
def _by_backend(precision: str) -> Iterator[None]:
    backends: Any = torch.backends
    switches = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]
    if precision == "ieee":
        switches += [backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn]
    found = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = precision
        yield
    finally:
        for switch, value in zip(switches, found, strict=True):
            switch.fp32_precision = value


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Compute in float32 proper: without a caller's autocast, and without TF32."""
    with torch.autocast("cpu", enabled=False), contextlib.ExitStack() as stack:
        if torch.cuda.is_available():
            stack.enter_context(torch.autocast("cuda", enabled=False))
        stack.enter_context(float32_products("ieee"))
        yield


@contextlib.contextmanager
def fixed_shapes() -> Iterator[None]:
    """Let cuDNN try its algorithms on each new shape, and keep the fastest, in this block.

    Worth it where batches have one size. Not where a caller wants deterministic algorithms.
    """
    cudnn, before = torch.backends.cudnn, torch.backends.cudnn.benchmark
    settled = cudnn.deterministic or torch.are_deterministic_algorithms_enabled()
    try:
        cudnn.benchmark = before or not settled
        yield
    finally:
        cudnn.benchmark = before


@contextlib.contextmanager
def kept_draws(device: torch.device) -> Iterator[None]:
    """Leave the global generators as they were: a random model draws from them."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


@contextlib.contextmanager
def private_draws(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from generators seeded for this block; the caller's global ones stay as they are."""
    with kept_draws(device):
        seed_generators(seed, device)
        yield


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the global generators, from which modules such as dropout draw on this device."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):  # manual_seed knows the current device only
            torch.cuda.manual_seed(seed)


@contextlib.contextmanager
def untouched(
    model: nn.Module, *, training: bool | None = False, frozen: bool = True
) -> Iterator[None]:
    """Attack a model without a trace: flags, buffers and `requires_grad` return as they were.

    Inside, parameters take no gradient (unless `frozen` is False), the model gets copies of its
    images (`copied_images`) and, unless `training` is None, all modules are put into train or eval
    mode. Also restored when the block raises.
    """
    modules = list(model.modules())  # one walk: each costs as much as a layer of a small network
    flags = [module.training for module in modules]
    # The tables too, not the values only: a forward may put another tensor in a buffer's place.
    tables = [dict(module._buffers) for module in modules]
    buffers = _distinct(tables)
    values = [torch.empty_like(buffer) for buffer in buffers]
    _copy(buffers, values)
    parameters = _distinct([module._parameters for module in modules])
    wanted = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters if frozen else ():
            parameter.requires_grad_(False)
        if training is not None and all(type(part).train is nn.Module.train for part in modules):
            for module in modules:
                _set_flag(module, training)
        elif training is not None:
            model.train(training)
        with copied_images(model):
            yield
    finally:
        for module, flag in zip(modules, flags, strict=True):
            _set_flag(module, flag)
        for parameter, flag in zip(parameters, wanted, strict=True):
            parameter.requires_grad_(flag)
        for module, table in zip(modules, tables, strict=True):
            if not _holds(module._buffers, table):  # TorchScript's table cannot be written
                module._buffers.clear()
                module._buffers.update(table)
        _copy(values, [buffer.data for buffer in buffers])  # past autograd: graphs stay valid


@contextlib.contextmanager
def copied_images(model: nn.Module) -> Iterator[None]:
    """Hand a model copies of its images in this block: it may write into what it is given.

    Nothing is done where it, or a module within it, is handed copies already.
    """
    if any(_copied in part._forward_pre_hooks.values() for part in model.modules()):
        yield
        return
    handle = nn.Module.register_forward_pre_hook(model, _copied)  # TorchScript forbids its own
    try:
        yield
    finally:
        handle.remove()


def _copied(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Copy the images that a model is called with, and count their gradients (a pre-hook)."""
    copies = tuple(one.clone() if isinstance(one, Tensor) else one for one in inputs)
    count = _COUNT.get()
    if count is not None:
        for one in copies:
            if isinstance(one, Tensor) and one.requires_grad:
                one.register_hook(count.see)  # type: ignore[no-untyped-call]
    return copies


class GradientCount:
    """Counts gradients by images, and those with entries that are NaN or infinite."""

    def __init__(self) -> None:
        self.seen = 0
        self._unusable: Tensor | int = 0
        self._sums: list[Tensor] = []

    def see(self, gradient: Tensor | None) -> None:
        """Take note of the gradients `(N, ...)` of a pass, without waiting for the device."""
        if gradient is None:  # a layer without a way back
            return
        if gradient.numel():
            rows = gradient.detach().flatten(1)
            self._sums.append(rows.sum(1))  # NaN and infinity pass through a sum
        self.seen += len(gradient)
        if len(self._sums) >= _PASSES:
            self._add_up()

    @property
    def unusable(self) -> int:
        """Gradients with an entry that is NaN or infinite (waits for the device)."""
        self._add_up()
        return int(self._unusable)

    def _add_up(self) -> None:
        if self._sums:
            self._unusable = self._unusable + (~torch.cat(self._sums).isfinite()).sum()
            self._sums = []


_COUNT: ContextVar[GradientCount | None] = ContextVar("gradient count", default=None)


@contextlib.contextmanager
def counted_gradients() -> Iterator[GradientCount]:
    """Count the gradients by images in this block, of models that are handed copies of them."""
    count = GradientCount()
    token = _COUNT.set(count)
    try:
        yield count
    finally:
        _COUNT.reset(token)


def chosen(first_where: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Do as `torch.where`, but for the sign of a zero.

    On a CPU that takes many times as long for images as a mixture with weights 0 and 1, which is
    exact where all numbers are finite.
    """
    if second.device.type != "cpu" or not math.isfinite(first.sum() + second.sum()):
        return torch.where(first_where, first, second)
    return torch.lerp(second, first, first_where.to(second.dtype))


def usable_gradient(gradient: Tensor, images: Tensor) -> Tensor:
    """Replace entries that are NaN or infinite by a slope away from the nearer bound of the pixel.

    As steep as the finite entries of the image are in the mean. A root, a logarithm or a length has
    such a gradient at a bound; a step off it, it is a number again. `gradient`, `images`
    `(N, C, H, W)`, pixels in [0, 1].
    """
    if gradient.device.type == "cpu" and math.isfinite(gradient.sum()):  # no wait there
        return gradient
    finite = gradient.nan_to_num(0.0, 0.0, 0.0)
    steep = finite.abs().mean((1, 2, 3), keepdim=True)
    away = torch.where(steep > 0, steep, 1.0).copysign(0.5 - images)
    return torch.where(finite == gradient, gradient, away)


@contextlib.contextmanager
def forward_hooks(hooks: Iterable[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Call hooks after the passes of their modules, in this block."""
    with contextlib.ExitStack() as stack:
        for module, hook in hooks:
            stack.callback(module.register_forward_hook(hook).remove)
        yield


def _distinct(tables: Iterable[Mapping[str, T | None]]) -> list[T]:
    """Return every tensor of the tables once."""
    return list({id(t): t for table in tables for t in table.values() if t is not None}.values())


@torch.no_grad()
def _copy(sources: list[Tensor], targets: list[Tensor]) -> None:
    """Copy tensors, those of one kind on one device together: on a GPU that is one kernel."""
    kinds: dict[object, tuple[list[Tensor], list[Tensor]]] = {}
    for source, target in zip(sources, targets, strict=True):
        pair = kinds.setdefault((source.device, source.dtype), ([], []))
        pair[0].append(source)
        pair[1].append(target)
    for pair in kinds.values():
        torch._foreach_copy_(pair[1], pair[0])


def _set_flag(module: nn.Module, training: bool) -> None:
    """Set the training flag, past `nn.Module.__setattr__`, which is slow for that many parts."""
    if "training" in vars(module):
        vars(module)["training"] = training
    else:
        module.training = training


def _holds(table: Mapping[str, object], wanted: Mapping[str, object]) -> bool:
    """Whether a table has the same objects under the same names."""
    if not len(table) and not len(wanted):
        return True
    found = dict(table.items())
    return found.keys() == wanted.keys() and all(found[name] is wanted[name] for name in found)


class PassMeter:
    """Counts the examples that pass forward and backward through a model, by hooks.

    `tick` is called after each forward pass.

    >>> with PassMeter(nn.Flatten()) as meter:
    ...     _ = meter.model(torch.zeros(3, 2, 2))
    >>> meter.forwards, meter.backwards
    (3, 0)
    """

    def __init__(self, model: nn.Module, tick: Callable[[], None] = lambda: None) -> None:
        self.model = model
        self.forwards = 0
        self.backwards = 0
        self._tick = tick

    def __enter__(self) -> "PassMeter":
        # Past what TorchScript forbids.
        self._handle = nn.Module.register_forward_hook(self.model, self._seen)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _seen(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.forwards += len(output)
        if output.requires_grad:
            output.register_hook(self._back)  # type: ignore[no-untyped-call]
        self._tick()

    def _back(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)
