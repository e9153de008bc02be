"""The fifteen common corruptions (Hendrycks & Dietterich, ICLR 2019), made for any images.

By the library imagecorruptions-imaug (`pip install "robust_nc[corruptions]"`), imported when first
needed. Its strengths are those of ImageNet-C, and it is written for photographs; what is done here
to make them fit small images is ours:

- Blurs, snow and frost have sizes in pixels of an image of 224. They are made on an image enlarged
  by a whole factor, every pixel a block, and the mean over each block is the result, so that an
  image to which nothing is done comes back as it was. The factor makes at least 224 pixels of the
  shorter side; images of fewer than 32 pixels have the factor of 32, which is 7. A defocus of 3 to
  10 pixels is then one of 0.43 to 1.43 (CIFAR-10-C, made for 32 pixels, has 0.3 to 1.5).
- Zoom blur and the elastic transform have sizes in shares of the image, which a small one cannot
  resolve: the same, with 64 in place of 224.
- Noise, fog, brightness, contrast, pixelation and JPEG are made on the image as it is.
- Grey images become three equal channels, and the first of the result is taken, which keeps the
  strength of noise. All images pass through 8 bits, as the library and CIFAR-10-C have them.

Strengths that are no sizes are greater than those of CIFAR-10-C (contrast is times 0.4 to 0.05,
there 0.75 to 0.15): accuracies compare between made images, not with its files (`data.cifar_c`).

>>> [enlargement("defocus_blur", side, side) for side in (8, 32, 96, 224)], enlargement("fog", 8, 8)
([7, 7, 3, 1], 1)
"""

import contextlib
import importlib
import inspect
from collections.abc import Iterator
from importlib import metadata
from types import ModuleType

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from robust_nc.checks import check_images
from robust_nc.data.corruption_names import CORRUPTIONS, check_severity
from robust_nc.exceptions import ConfigError, InputError, unknown_name
from robust_nc.runtime.torch_state import keyed_uniform

DISTRIBUTION = "imagecorruptions-imaug"

_MODULE = "imagecorruptions"
_INSTALL = 'pip install "robust_nc[corruptions]"'
_WORKED_AT = {  # pixels of the shorter side; the others are made on the image as it is
    "defocus_blur": 224,
    "glass_blur": 224,
    "motion_blur": 224,
    "snow": 224,
    "frost": 224,
    "zoom_blur": 64,
    "elastic_transform": 64,
}
_SMALL = 32  # images below are enlarged as if they were of this size
_SMALLEST = 4  # at severity 5 pixelation leaves a quarter of the side
_SEEDED = ("impulse_noise", "glass_blur")  # take a seed; the others draw from NumPy's global state
_BITS = 24  # of a keyed draw


def enlargement(corruption: str, height: int, width: int) -> int:
    """Return the whole factor by which images are enlarged before a corruption is made."""
    side = max(_SMALL, min(height, width))
    return -(-_WORKED_AT.get(corruption, side) // side)


def corruption_library() -> ModuleType:
    """Import the library, or raise `ConfigError` that says what to install."""
    try:
        metadata.version(DISTRIBUTION)
        found = importlib.import_module(_MODULE)
    except metadata.PackageNotFoundError:
        raise ConfigError(
            f"common corruptions are made by {DISTRIBUTION}, which is not installed: {_INSTALL}"
        ) from None
    except ImportError as error:
        raise ConfigError(
            f"{DISTRIBUTION}, which makes common corruptions, does not import ({error}): {_INSTALL}"
        ) from None
    if "seed" not in inspect.signature(found.glass_blur).parameters:
        raise ConfigError(
            f"{_MODULE}/ is that of another package than {DISTRIBUTION}: "
            f"pip uninstall {_MODULE}, then pip install --force-reinstall --no-deps {DISTRIBUTION}"
        )
    return found


def corrupt_images(
    images: Tensor, corruption: str, severity: int, *, ids: Tensor, seed: int = 0
) -> Tensor:
    """Return images `(N, C, H, W)` float32 in [0, 1] under one corruption, on the same device.

    `severity` is 1 to 5, C is 1 or 3, H and W are at least 4. What is drawn for an image depends
    on (seed, corruption, severity, its id in `ids` (N,)) alone. The library works on one image at
    a time. Raises `InputError` for images or a severity that cannot be used, `UnknownNameError`
    for a corruption, `ConfigError` where the library is missing.
    """
    if corruption not in CORRUPTIONS:
        raise unknown_name("corruption", corruption, CORRUPTIONS)
    check_severity(severity)
    pixels = _stored(check_images(images))
    if len(ids) != len(pixels):
        raise InputError(f"found {len(ids)} ids for {len(pixels)} images; one for each is needed")
    keys = _keys(seed, ids.cpu(), f"corruption/{corruption}/{severity}")
    library = corruption_library()
    made = np.empty(pixels.shape, dtype=np.float32)
    with _own_draws():
        for i, image in enumerate(pixels):
            made[i] = _corrupted(library, image, corruption, severity, keys[i])
    return torch.from_numpy(made).permute(0, 3, 1, 2).contiguous().to(images.device)


def _stored(images: Tensor) -> np.ndarray:
    """Return images as bytes `(N, H, W, C)`."""
    channels, height, width = images.shape[1:]
    if channels not in (1, 3) or min(height, width) < _SMALLEST:
        raise InputError(
            f"corruptions need images of 1 or 3 channels and at least {_SMALLEST} x {_SMALLEST} "
            f"pixels, found {channels} channels of {height} x {width}"
        )
    pixels: np.ndarray = (images.cpu() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return pixels


def _keys(seed: int, ids: Tensor, stream: str) -> list[list[int]]:
    """Return two whole numbers of 24 bits for each image."""
    draws = keyed_uniform(seed, ids, stream, 2).double() * 2**_BITS
    found: list[list[int]] = draws.long().tolist()
    return found


@contextlib.contextmanager
def _own_draws() -> Iterator[None]:
    """Leave NumPy's global generator, which the library draws from, as it was found."""
    state = np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


def _corrupted(
    library: ModuleType, image: np.ndarray, corruption: str, severity: int, key: list[int]
) -> np.ndarray:
    """Corrupt one image `(H, W, C)` of bytes; floats in [0, 1] of the same shape."""
    height, width, channels = image.shape
    factor = enlargement(corruption, height, width)
    large = np.repeat(image, factor, 0).repeat(factor, 1).repeat(3 // channels, 2)
    function = library.corruption_dict[corruption]
    if corruption in _SEEDED:
        result = function(Image.fromarray(large), severity, seed=key[0])
    else:
        np.random.seed(key)  # noqa: NPY002
        result = function(Image.fromarray(large), severity)
    whole = np.asarray(result).astype(np.uint8).reshape(height, factor, width, factor, 3)
    small: np.ndarray = whole[..., :channels].mean((1, 3)) / 255
    return small
