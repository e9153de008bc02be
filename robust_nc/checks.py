"""Checks of what users hand in: model, images and labels, each answered with one sentence.

>>> import torch
>>> check_images(torch.rand(2, 1, 4, 4)).dtype
torch.float32
>>> check_labels([0, 3], 2, num_classes=3)
Traceback (most recent call last):
...
robust_nc.exceptions.InputError: labels must be in 0..2, found 3
"""

import numpy as np
import torch
from torch import Tensor, nn

from robust_nc.exceptions import InputError


def check_model(model: object) -> nn.Module:
    """Return the model, or raise `InputError` for what is no `torch.nn.Module`."""
    if isinstance(model, nn.Module):
        return model
    raise InputError(
        f"the model must be a torch.nn.Module that maps images to logits, found a "
        f"{type(model).__name__}; hand in the module itself, or one whose forward calls it"
    )


def check_images(images: object, *, what: str = "images") -> Tensor:
    """Return images as float32 `(N, C, H, W)` in [0, 1], on the device they came on.

    Tensors and NumPy arrays are taken. Raises `InputError` for another shape, for integers, for
    values that are not finite or outside of [0, 1], and for images without a pixel.
    """
    found = _tensor(images, what)
    if found.ndim != 4:
        raise InputError(f"{what} must have the shape (N, C, H, W), found {tuple(found.shape)}")
    if 0 in found.shape[1:]:
        raise InputError(f"{what} have no pixels: found the shape {tuple(found.shape)}")
    if not found.is_floating_point():
        raise InputError(
            f"{what} must be floats in [0, 1], found {_dtype(found)}; "
            "convert 0..255 with images.float() / 255"
        )
    pixels = found.detach().to(torch.float32)
    if not len(pixels):
        return pixels
    low, high = (float(value) for value in pixels.aminmax())  # NaN comes through as NaN
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError(f"{what} must be finite, found NaN or infinite values")
    if low < 0:
        raise InputError(
            f"{what} must be in [0, 1], found {low:.4g}; "
            "normalisation belongs inside the classifier, so hand in the plain pixels"
        )
    if high > 1:
        raise InputError(f"{what} must be in [0, 1], found {high:.4g}; divide by 255 if 0..255")
    return pixels


def check_labels(
    labels: object, n: int, num_classes: int | None = None, *, what: str = "labels"
) -> Tensor:
    """Return labels as int64 `(n,)`, on the device they came on.

    Floats are taken where every value is whole, and a column (n, 1). Raises `InputError` for
    another shape or length (one-hot rows too), and for labels below 0 or not below `num_classes`.
    """
    found = _tensor(labels, what)
    if found.ndim == 2 and found.shape[1] == 1:
        found = found[:, 0]
    if found.ndim != 1:
        raise InputError(
            f"{what} must have the shape (N,), found {tuple(found.shape)}; "
            "turn one-hot rows into class numbers with argmax(1)"
        )
    if len(found) != n:
        raise InputError(f"found {len(found)} {what} for {n} images; one for each is needed")
    if found.dtype == torch.bool or found.is_complex():
        raise InputError(f"{what} must be class numbers, found {_dtype(found)}")
    whole = found.to(torch.int64)
    if found.is_floating_point() and not bool((whole == found).all()):
        raise InputError(f"{what} must be whole numbers, found {_dtype(found)} with fractions")
    if n:
        low, high = (int(value) for value in whole.aminmax())
        worst = low if low < 0 else high
        limit = num_classes if num_classes is not None else high + 1
        if low < 0 or high >= limit:
            upper = f"0..{limit - 1}" if num_classes is not None else "0 or more"
            raise InputError(f"{what} must be in {upper}, found {worst}")
    return whole


def _tensor(values: object, what: str) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach()
    if not isinstance(values, np.ndarray | list | tuple):
        kind = type(values).__name__
        raise InputError(f"{what} must be a torch tensor or a NumPy array, found {kind}")
    try:
        array = np.asarray(values)
        if not array.dtype.isnative:
            array = array.astype(array.dtype.newbyteorder("="))
        # A read-only array (a memory map) cannot be shared with torch without a warning.
        return torch.from_numpy(np.require(array, requirements=["C", "W"]))
    except (TypeError, ValueError):
        raise InputError(f"{what} must be one array of numbers, found unlike rows") from None


def _dtype(values: Tensor) -> str:
    return str(values.dtype).removeprefix("torch.")
