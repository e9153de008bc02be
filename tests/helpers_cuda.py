"""A CUDA device that is not there: values on the CPU, under the rules of a device.

A tensor "on cuda:i" is an `OnDevice`: a subclass over plain memory that says `device == cuda:i` and
refuses what CUDA refuses: operators on tensors of several devices (numbers and indices may lie on
the CPU), `.numpy()`, generators of the CPU. Random operators draw from a generator of the device.
`torch.cuda` answers as with two GPUs. Counted are kernels (operators that are neither views nor
allocations) and waits of the host, by kind.

    with SimulatedCuda() as device:
        model.to("cuda")
    device.kernels, device.waits

It cannot show other rounding, atomics, streams, memory, what kernels lack, `torch.compile`, or
time. With `float64=False` it has no float64, as MPS.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

_SECOND = 0x5EED  # told apart from what the same seed gives on the CPU
_PROPERTIES = SimpleNamespace(name="Simulated", total_memory=80 * 2**30, major=9, minor=0)
# Operators whose shape or answer depends on values.
_WAITS = {
    *("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "_unique", "unique_dim"),
    *("unique_consecutive", "bincount", "equal", "is_nonzero", "_linalg_check_errors", "histc"),
    *("_linalg_eigh", "_linalg_svd", "linalg_qr", "linalg_lstsq", "_linalg_solve_ex"),
    *("linalg_inv_ex", "linalg_cholesky_ex"),
}
_NO_KERNEL = {
    *("alias", "detach", "view", "_unsafe_view", "_reshape_alias", "_local_scalar_dense"),
    *("lift_fresh", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
}
_CROSSING = {"copy_", "_to_copy", "set_"}
_INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
_NO_NUMBERS = {"convolution", "addmm", "mm", "bmm", "native_batch_norm", "gather", "scatter"}
_FROM_DATA = {torch.tensor, torch.as_tensor, torch.asarray}

_current: "SimulatedCuda | None" = None


class OnDevice(Tensor):
    """A tensor on a simulated device."""

    _place: int
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, plain: Tensor, place: int, requires_grad: bool = False) -> "OnDevice":
        made: OnDevice = Tensor._make_subclass(cls, plain, requires_grad)
        made._place = place
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda", self._place)

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    def __deepcopy__(self, memo: dict[int, Any]) -> "OnDevice":
        if id(self) not in memo:
            made = OnDevice(_plain(self).clone(), self._place, self.requires_grad)
            made.__dict__.update(self.__dict__)  # whether it is a parameter
            made.grad = None if self.grad is None else self.grad.clone()
            memo[id(self)] = made
        found: OnDevice = memo[id(self)]
        return found

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if _current is None:
            raise RuntimeError("a tensor of a simulated device has outlived it")
        return _current.operate(func, args, kwargs or {})


class SimulatedCuda(TorchFunctionMode):
    """The devices `cuda:0`, `cuda:1`, ... in this block, and what was counted on them."""

    def __init__(self, devices: int = 2, *, float64: bool = True) -> None:
        super().__init__()
        self.devices = devices
        self.float64 = float64
        self.current = 0
        self.kernels: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.generators = [torch.Generator().manual_seed(i).get_state() for i in range(devices)]
        self._handed: Any = ()  # to the function of torch that is running
        self._stack = contextlib.ExitStack()

    def place(self, device: Any = None) -> int:
        """Index of a device, the current one where it names none."""
        named = None if device is None or isinstance(device, int) else torch.device(device).index
        index = device if isinstance(device, int) else named
        if index is not None and index >= self.devices:
            raise RuntimeError("CUDA error: invalid device ordinal")
        return self.current if index is None else index

    def __enter__(self) -> "SimulatedCuda":
        global _current
        _current = self
        self._stack.enter_context(_faked(self))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        global _current
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._stack.close()
        _current = None

    # Operators, beneath autograd

    def operate(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator of which some tensors are on the device."""
        name = func._schema.name.removeprefix("aten::")
        leaves = tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        there = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
        place = there[0]._place if there else self.current
        if name not in _CROSSING:
            self._check(name, args, tensors)
        if any(isinstance(leaf, torch.Generator) for leaf in leaves):
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        self._count(func, name, args)
        random = torch.Tag.nondeterministic_seeded in func.tags
        drawing = self.drawing(place) if random else contextlib.nullcontext()
        with drawing, torch._C._DisableTorchDispatch():
            found = func(*args, **kwargs)
        self.check_dtypes(found)
        mine = {id(tensor) for tensor in there}
        if func._schema.is_mutable:  # returns what it was given
            mine |= {id(tensor) for tensor in tensors}
        return tree_map(lambda leaf: leaf if id(leaf) in mine else _put(leaf, place), found)

    def _check(self, name: str, args: Any, tensors: list[Tensor]) -> None:
        own = args[0]
        devices = {tensor.device for tensor in tensors if isinstance(tensor, OnDevice)}
        for tensor in tensors:
            index = name in _INDEXED and any(tensor is one for one in args[1])
            if index and isinstance(tensor, OnDevice) and not isinstance(own, OnDevice):
                devices.add(own.device)
            number = index or (tensor.ndim == 0 and name not in _NO_NUMBERS)
            if not number and not isinstance(tensor, OnDevice) and self._is_handed(tensor):
                devices.add(tensor.device)
        if len(devices) > 1:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices "
                f"[simulated, {name}: {[(str(t.device), *t.shape) for t in tensors]}]"
            )

    def _is_handed(self, tensor: Tensor) -> bool:
        """Whether a tensor came from outside: what C++ makes for itself would be on the device."""
        given = [leaf for leaf in tree_leaves(self._handed) if type(leaf) is Tensor]
        return any(_memory(leaf) == _memory(tensor) for leaf in given)

    def _count(self, func: Any, name: str, args: Any) -> None:
        if not (func.is_view or name in _NO_KERNEL):
            self.kernels[name] += 1
        if name in _WAITS or (name, func._overloadname) == ("repeat_interleave", "Tensor"):
            self.waits[name] += 1
        if name == "copy_" and isinstance(args[0], OnDevice) != isinstance(args[1], OnDevice):
            self.waits["to the host" if isinstance(args[1], OnDevice) else "to the device"] += 1
        for index in args[1] if name in _INDEXED else ():
            if index is not None and index.dtype in (torch.bool, torch.uint8):
                self.waits["mask"] += 1
            if index is not None and not isinstance(index, OnDevice):
                self.waits["to the device"] += 1

    def check_dtypes(self, found: Any) -> None:
        """Refuse float64 where there is none, in the words of torch for MPS."""
        doubles = (isinstance(t, Tensor) and t.dtype == torch.float64 for t in tree_leaves(found))
        if not self.float64 and any(doubles):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")

    @contextlib.contextmanager
    def drawing(self, place: int) -> Iterator[None]:
        """Draw from the generator of a device."""
        before = torch.default_generator.get_state()
        torch.default_generator.set_state(self.generators[place])
        try:
            yield
        finally:
            self.generators[place] = torch.default_generator.get_state()
            torch.default_generator.set_state(before)

    # Functions, above autograd

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch; those that name a device, move or read values are ours."""
        kwargs = dict(kwargs or {})
        if func in _HANDLERS:
            return _HANDLERS[func](self, func, *args, **kwargs)
        if kwargs.get("device") is not None:
            return self._made(func, args, kwargs)
        self._handed = args, kwargs
        found = func(*args, **kwargs)
        if type(found) in (Tensor, tuple, list):
            return self._placed(found, (args, kwargs))
        return found

    def _placed(self, found: Any, given: Any) -> Any:
        """Put on the device what C++ made without operators for tensors that lie there."""
        mine = {id(leaf): leaf for leaf in tree_leaves(given)}
        place = next((leaf._place for leaf in mine.values() if isinstance(leaf, OnDevice)), None)

        def put(leaf: Any) -> Any:
            if type(leaf) is not Tensor or id(leaf) in mine:
                return leaf
            return _moved(leaf, place) if leaf.grad_fn else _put(leaf, place)

        return found if place is None else tree_map(put, found)

    def _made(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Make a tensor on the device that is named."""
        device = kwargs.pop("device")
        device = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
        if func in _FROM_DATA and args and isinstance(args[0], Tensor):
            made = func(*args, **kwargs)
            return _HANDLERS[Tensor.to](self, Tensor.to, made, device)
        bare, named = tree_map(_plain, (args, kwargs))
        if device.type != "cuda":
            return func(*bare, **named, device=device)
        if isinstance(kwargs.get("generator"), torch.Generator):
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        place = self.place(device)
        if func in _FROM_DATA:
            self.waits["to the device"] += 1
        elif func is not torch.empty:
            self.kernels[func.__name__] += 1
        with self.drawing(place):
            made = func(*bare, **named, device="cpu")
        self.check_dtypes(made)
        return OnDevice(made.detach(), place, made.requires_grad)

    def moved(self, tensor: Tensor, device: torch.device, *, waits: bool = True) -> Tensor:
        """Move a tensor to a device; itself where it is there."""
        place = None if device.type == "cpu" else self.place(device)
        if place == (tensor._place if isinstance(tensor, OnDevice) else None):
            return tensor
        self.waits["to the host" if place is None else "to the device"] += place is None or waits
        found = _moved(tensor, place)
        if place is not None:
            self.check_dtypes(found)
        return found


class _Move(torch.autograd.Function):
    """Copies to another place, and the gradient back."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, place: int | None) -> Tensor:
        ctx.origin = tensor._place if isinstance(tensor, OnDevice) else None
        found: Tensor = _put(_plain(tensor).clone(), place)
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _put(_plain(gradient).clone(), ctx.origin), None


def _moved(tensor: Tensor, place: int | None) -> Tensor:
    with torch._C.DisableTorchFunction():
        found: Tensor = _Move.apply(tensor, place)  # type: ignore[no-untyped-call]
    return found


def _put(leaf: Any, place: int | None) -> Any:
    """Put a plain tensor without a graph on a device; anything else stays as it is."""
    if place is None or not isinstance(leaf, Tensor) or isinstance(leaf, OnDevice):
        return leaf
    return OnDevice(leaf, place, leaf.requires_grad)


def _plain(leaf: Any) -> Any:
    """Return the plain tensor in the same memory, without a graph; anything else as it is."""
    if not isinstance(leaf, OnDevice):
        return leaf
    with torch._C._DisableTorchDispatch(), torch._C.DisableTorchFunction():
        return Tensor._make_subclass(Tensor, Tensor.detach(leaf))


def _memory(tensor: Tensor) -> int:
    with torch._C._DisableTorchDispatch(), torch._C.DisableTorchFunction():
        return int(tensor.untyped_storage()._cdata)


def _to(devices: SimulatedCuda, func: Any, own: Tensor, *rest: Any, **kwargs: Any) -> Tensor:
    device, dtype = kwargs.pop("device", None), kwargs.pop("dtype", None)
    for value in (*rest, kwargs.pop("other", None)):
        if isinstance(value, Tensor):
            device, dtype = value.device, value.dtype
        elif isinstance(value, torch.dtype):
            dtype = value
        elif isinstance(value, torch.device | str):
            device = torch.device(value)
    waits = not kwargs.pop("non_blocking", False)
    copy, found = kwargs.pop("copy", False), own
    if device is not None:
        found = devices.moved(found, torch.device(device), waits=waits)
    if dtype is not None or kwargs:
        found = func(found, dtype or found.dtype, **kwargs)
    return found.clone() if copy and found is own else found


def _tolist(devices: SimulatedCuda, func: Any, own: Tensor) -> Any:
    devices.waits["tolist"] += isinstance(own, OnDevice)
    return func(_plain(own))


def _numpy(devices: SimulatedCuda, func: Any, own: Tensor, *args: Any, **kwargs: Any) -> Any:
    if isinstance(own, OnDevice):
        raise TypeError(f"can't convert {own.device} device type tensor to numpy")
    return func(own, *args, **kwargs)


def _beneath(devices: SimulatedCuda, func: Any, own: Tensor, *args: Any) -> Any:
    return _put(func(_plain(own), *args), own._place if isinstance(own, OnDevice) else None)


def _set_data(devices: SimulatedCuda, func: Any, own: Tensor, new: Tensor) -> None:
    if isinstance(own, OnDevice) != isinstance(new, OnDevice):
        raise RuntimeError("incompatible tensor type [simulated, data of another device]")
    with torch._C._DisableTorchDispatch(), torch._C.DisableTorchFunction():
        func(own, _plain(new))


_HANDLERS: dict[Any, Callable[..., Any]] = {
    Tensor.to: _to,
    Tensor.cpu: lambda devices, func, own: devices.moved(own, torch.device("cpu")),
    Tensor.cuda: lambda devices, func, own: devices.moved(own, torch.device("cuda")),
    Tensor.numpy: _numpy,
    Tensor.__array__: _numpy,
    Tensor.tolist: _tolist,
    **dict.fromkeys((Tensor.data.__get__, Tensor.untyped_storage, Tensor.data_ptr), _beneath),  # type: ignore[attr-defined]
    Tensor.data.__set__: _set_data,  # type: ignore[attr-defined]
}


@contextlib.contextmanager
def _faked(devices: SimulatedCuda) -> Iterator[None]:
    """Let `torch.cuda` answer for the devices, and autocast on them be that of the CPU."""

    def seed(value: int, place: int | None = None) -> None:
        state = torch.Generator().manual_seed(value ^ _SECOND).get_state()
        devices.generators[devices.place(place)] = state

    def set_state(state: Tensor, device: Any = "cuda") -> None:
        devices.generators[devices.place(device)] = state.clone()

    @contextlib.contextmanager
    def current(device: Any) -> Iterator[None]:
        before, devices.current = devices.current, devices.place(device)
        try:
            yield
        finally:
            devices.current = before

    def autocast(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        begin(self, "cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    def autocasts(device_type: str = "cuda") -> bool:
        return enabled("cpu" if device_type == "cuda" else device_type)

    random: dict[str, Any] = {
        "get_rng_state": lambda device="cuda": devices.generators[devices.place(device)].clone(),
        "set_rng_state": set_state,
        "manual_seed": seed,
        "_lazy_init": lambda: None,
    }
    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: devices.devices,
        "current_device": lambda: devices.current,
        "device": current,
        "synchronize": lambda device=None: devices.waits.update(["synchronize"]),
        "empty_cache": lambda: None,
        "get_device_properties": lambda device=None: _PROPERTIES,
        "is_bf16_supported": lambda including_emulation=True: True,
    }
    begin, enabled = torch.autocast.__init__, torch.is_autocast_enabled
    kept = torch.__future__.get_overwrite_module_params_on_conversion()
    with (
        patch.multiple(torch.cuda, **answers, **random),
        patch.multiple(torch.cuda.random, **random),
        patch.object(torch.autocast, "__init__", autocast),
        patch.object(torch, "is_autocast_enabled", autocasts),
    ):
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            yield
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(kept)
