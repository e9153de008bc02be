"""Names and paths of a command, looked up before what takes long is imported.

>>> look_up(DataOptions("fetch", "cifar10"))
>>> look_up(DataOptions("fetch", "cifra10"))  # doctest: +ELLIPSIS
Traceback (most recent call last):
...
robust_nc.exceptions.UnknownNameError: unknown data set 'cifra10'; did you mean 'cifar10' or ...
"""

from pathlib import Path

from robust_nc.cli.board import BoardOptions
from robust_nc.cli.options import (
    ChallengeOptions,
    CompareOptions,
    DataOptions,
    SubmitOptions,
    SuitesOptions,
)
from robust_nc.engines.options import RunOptions
from robust_nc.exceptions import unknown_name
from robust_nc.io.untrusted import read_json
from robust_nc.io.user_code import split_code
from robust_nc.pipeline.suite_files import CLAIMS, suite_text
from robust_nc.record.folder import record_files
from robust_nc.registry import DATASETS
from robust_nc.verification.options import CheckOptions


def look_up(options: object) -> None:
    """Raise for a name that is unknown and a path that is not there what the verb would raise."""
    match options:
        case RunOptions(suite=name) | SuitesOptions(action="show", name=str(name)):
            if name != CLAIMS:
                suite_text(name)
        case DataOptions(action="fetch", name=str(name)):
            if name not in DATASETS and split_code(name) is None:
                raise unknown_name(DATASETS.kind, name, DATASETS.names())
        case BoardOptions(results=place):
            options.check()
            _there(place)
        case CheckOptions(records=places):
            options.check()
            _there(*places)
        case CompareOptions(first=first, second=second):
            _there(first, second)
        case SubmitOptions(record=path) | ChallengeOptions(record=path):
            read_json(path)


def _there(*places: Path) -> None:
    for place in places:
        if not place.exists():
            record_files(place)
