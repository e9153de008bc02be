"""The fifteen common corruptions (Hendrycks & Dietterich, ICLR 2019): names, images, mean error.

In five severities, in four families: noise, blur, weather, digital. Images are made by the library
imagecorruptions-imaug (`pip install "robust_nc[corruptions]"`), imported when first needed; names
and errors need it not. Its strengths are those of ImageNet-C, and it is written for photographs;
what is done here to make them fit small images is ours:

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
>>> chosen_corruptions(["fog", "fog"]), len(chosen_corruptions(["all"]))
(('fog',), 15)
>>> mean_corruption_error({"fog": [0.9, 0.7], "snow": [0.6, 0.6]})
0.3
"""

import importlib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from numbers import Integral
from types import ModuleType

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from robust_nc.checks import check_images
from robust_nc.exceptions import ConfigError, InputError, unknown_name
from robust_nc.runtime.torch_state import keyed_uniform

CORRUPTIONS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
SEVERITIES = (1, 2, 3, 4, 5)
DISTRIBUTION = "imagecorruptions-imaug"

_ALL = "all"
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
    state = np.random.get_state()  # noqa: NPY002 (the library draws from it)
    try:
        for i, image in enumerate(pixels):
            made[i] = _corrupted(library, image, corruption, severity, keys[i])
    finally:
        np.random.set_state(state)  # noqa: NPY002
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


def check_corruptions(names: Iterable[str]) -> None:
    """Refuse a name that is no corruption with the nearest ones; "all" stands for the fifteen."""
    for name in names:
        if name not in (*CORRUPTIONS, _ALL):
            raise unknown_name("corruption", name, (*CORRUPTIONS, _ALL))


def check_severity(severity: int) -> None:
    """Refuse what is no severity; 3.0 is none either, for severities are places in a list."""
    whole = isinstance(severity, Integral) and not isinstance(severity, bool)
    if not whole or severity not in SEVERITIES:
        raise InputError(
            f"the severity of a corruption must be 1, 2, 3, 4 or 5, an int, found {severity!r}"
        )


def chosen_corruptions(names: Iterable[str]) -> tuple[str, ...]:
    """Return each corruption once, in the order given; "all" stands for the fifteen.

    Raises `UnknownNameError` for any other name.
    """
    names = list(names)
    check_corruptions(names)
    found = [each for name in names for each in (CORRUPTIONS if name == _ALL else (name,))]
    return tuple(dict.fromkeys(found))


def mean_corruption_error(
    accuracies: Mapping[str, Sequence[float]],
    baseline: Mapping[str, Sequence[float]] | None = None,
) -> float:
    """Return the mean corruption error (mCE) of accuracies in [0, 1], by corruption.

    Each corruption lists its severities. Without `baseline`: the mean error over severities, then
    over corruptions, which is what is meant on CIFAR-10-C and CIFAR-100-C. With it, each
    corruption's error is divided by the baseline's first, sum by sum over severities (Hendrycks &
    Dietterich, section 4, and RobustBench on ImageNet-C: the baseline is AlexNet, whose mCE is 1).

    Raises `InputError` where there is nothing to average, where the two differ in corruptions or
    severities, or where the baseline makes no error.
    """
    if not accuracies or not all(len(values) for values in accuracies.values()):
        raise InputError(
            "a mean corruption error needs accuracies of one corruption or more, found none"
        )
    errors = {name: len(values) - sum(values) for name, values in accuracies.items()}
    if baseline is None:
        shares = [error / len(accuracies[name]) for name, error in errors.items()]
        return sum(shares) / len(shares)
    found = {name: len(values) for name, values in accuracies.items()}
    known = {name: len(values) for name, values in baseline.items()}
    if found != known:
        raise InputError(
            f"the baseline must have the same corruptions and severities, found {known} for {found}"
        )
    ours = {name: len(values) - sum(values) for name, values in baseline.items()}
    perfect = [name for name, error in ours.items() if error <= 0]
    if perfect:
        raise InputError(f"the baseline makes no error under {perfect[0]}: nothing to divide by")
    return sum(error / ours[name] for name, error in errors.items()) / len(errors)
