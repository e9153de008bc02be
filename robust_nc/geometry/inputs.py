"""Checks of features and vertices, each failing with one clear sentence.

>>> import numpy as np
>>> as_features(np.zeros((3, 2), np.float32), "features").shape
torch.Size([3, 2])
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from robust_nc.exceptions import InputError
from robust_nc.runtime.torch_state import check_float64


def as_tensor(values: Any, name: str) -> Tensor:
    """Take a tensor or anything NumPy can read as an array of numbers."""
    if isinstance(values, Tensor):
        check_float64(values.device)
        return values.detach()
    try:
        array = np.asarray(values)
    except ValueError:
        raise InputError(f"{name} must be numbers in rows of one length") from None
    if array.dtype.kind not in "fiub":
        raise InputError(f"{name} must be numbers, found an array of {array.dtype}")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype.kind == "u":
        array = array.astype(np.int64)
    if array.dtype == np.longdouble:
        array = array.astype(np.float64)
    return torch.from_numpy(
        np.array(array, order="C", copy=None if array.flags.writeable else True)
    )


def as_features(values: Any, name: str, *, dim: int | None = None) -> Tensor:
    """Take `(N, D)` floating finite features; half precision becomes float32."""
    features = as_tensor(values, name)
    check_features(features, name, dim=dim)
    return features if features.dtype in (torch.float32, torch.float64) else features.float()


def check_features(features: Tensor, name: str = "features", *, dim: int | None = None) -> None:
    """Refuse what is not `(N, D)`, floating and finite."""
    if features.ndim != 2 or (dim is not None and features.shape[1] != dim):
        raise InputError(
            f"{name} must have shape (N, {dim or 'D'}), found {tuple(features.shape)}; "
            "flatten or pool each example to one row"
        )
    if not features.is_floating_point():
        raise InputError(f"{name} must be floating point, found {features.dtype}")
    # One fast pass without a temporary, which passes NaN on (the infinity norm takes 100 times it).
    ends = torch.stack(features.detach().aminmax()) if features.numel() else None
    if ends is not None and not bool(torch.isfinite(ends).all()):
        raise InputError(f"{name} must be finite, found NaN or infinity")


def as_vertices(values: Any, name: str = "vertices") -> Tensor:
    """Take `(K, D)` vertices as float64; a class without a vertex is a row of NaN."""
    vertices = as_tensor(values, name)
    if vertices.ndim != 2 or not vertices.is_floating_point():
        raise InputError(
            f"{name} must be floating point of shape (K, D), "
            f"found {vertices.dtype} of shape {tuple(vertices.shape)}"
        )
    vertices = vertices.double()
    present = torch.isfinite(vertices).all(1)
    if not bool((present | torch.isnan(vertices).all(1)).all()):
        raise InputError(f"{name} must be finite (only a class without a vertex is a row of NaN)")
    if int(present.sum()) < 2:
        raise InputError(f"{name} must hold at least two classes, found {int(present.sum())}")
    return vertices
