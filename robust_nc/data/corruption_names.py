"""Names of the common corruptions, and the mean corruption error over them.

Fifteen corruptions in five severities, in four families: noise, blur, weather, digital (Hendrycks
& Dietterich, ICLR 2019, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations"). Nothing here needs the library that makes them (`data.corruptions` does).

>>> chosen_corruptions(["fog", "fog"]), len(chosen_corruptions(["all"]))
(('fog',), 15)
>>> mean_corruption_error({"fog": [0.9, 0.7], "snow": [0.6, 0.6]})
0.3
"""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral

from robust_nc.exceptions import InputError, unknown_name

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

_ALL = "all"


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
