"""Every error that a user can cause, each with one sentence.

The sentence says what was found, what is valid and what to do.

>>> raise_from = InputError("images reach 255.0; divide by 255 to bring them into [0, 1]")
>>> isinstance(raise_from, ValueError)
True
"""

import difflib
from collections.abc import Iterable


class RobustNCError(Exception):
    """Base of all errors of this package; the command line prints them without a traceback."""


class InputError(RobustNCError, ValueError):
    """Data or an argument that cannot be used: shape, type, range, labels."""


class NoGradientError(InputError):
    """Logits that do not depend on the images in a way that can be differentiated."""


class ConfigError(RobustNCError, ValueError):
    """A suite, a configuration or an option that cannot be used."""


class UnknownNameError(ConfigError):
    """A name that nothing is registered under."""


class DataError(RobustNCError):
    """A data set that is missing, damaged or not what its checksum says."""


class CheckpointError(RobustNCError):
    """A checkpoint that is damaged, truncated or of another configuration."""


class RecordError(RobustNCError):
    """A record or a log that is damaged or does not belong to what it is used with."""


class StorageError(RobustNCError, OSError):
    """A place that cannot be written: missing rights, full disk."""


class TrainingError(RobustNCError):
    """Training that cannot go on, for instance because the loss is not finite."""


class ClusterError(RobustNCError):
    """A cluster that cannot be reached, or that lost a task too often."""


class CellError(RobustNCError):
    """Cells of a run that failed, or are missing; the records of the others are there."""


class StoppedError(RobustNCError):
    """Work that was asked to stop, and did so with its state saved."""

    def __init__(
        self,
        message: str = "stopped as asked; what was finished is saved, and the same command goes on "
        "from there",
    ) -> None:
        super().__init__(message)


def unknown_name(kind: str, name: str, valid: Iterable[str]) -> UnknownNameError:
    """Answer an unknown name with the nearest valid ones.

    >>> print(unknown_name("head", "eft", ["etf", "linear"]))
    unknown head 'eft'; did you mean 'etf'? Valid: etf, linear
    """
    names = sorted(valid)
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else "."
    return UnknownNameError(f"unknown {kind} {name!r}{hint} Valid: {', '.join(names) or 'none'}")
