"""The user's own code: a name in a module that is installed, or in a `.py` file.

>>> split_code("path/to/file.py:factory")
Code(place='path/to/file.py', name='factory')
"""

import contextlib
import importlib
import importlib.util
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from robust_nc.exceptions import ConfigError
from robust_nc.io.files import digest

# Files whose lines tell a user nothing about their own: ours, Python's, and what has no file.
_OF_OTHERS = (str(Path(__file__).parent.parent), sysconfig.get_path("stdlib"), "<")


class Code(NamedTuple):
    """A name in a module, or in a `.py` file."""

    place: str
    name: str

    @property
    def is_file(self) -> bool:
        """Whether the place is a file."""
        return self.place.endswith(".py")


def split_code(reference: str) -> Code | None:
    """Take `package.module:name` or `path/to/file.py:name` apart; None for anything else."""
    place, colon, name = reference.rpartition(":")
    if not colon or not place or not name.isidentifier():
        return None
    # A path may hold a colon: that of a drive, for instance.
    return Code(place, name) if ":" not in place or place.endswith(".py") else None


def load_code(code: Code, *, valid: str = "a module, or a .py file") -> Any:
    """Run the module or file that the user names, and return what the name stands for there.

    Raises `ConfigError` where there is none, or where it cannot be run; `valid` says what else
    could have been named.
    """
    with findable(code):
        module = _file(code) if code.is_file else _module(code, valid)
        try:
            return getattr(module, code.name)
        except AttributeError:
            raise lacks(code) from None


_allowed: set[str] = set()


def allow(reference: str) -> None:
    """Let a registry run the code of this reference, in this process: the user named it."""
    _allowed.add(reference)


def is_allowed(reference: str) -> bool:
    """Whether the user named this code."""
    return reference in _allowed


def reference_to(part: Any) -> str:
    """Name a class or function so that `load_code` finds it, in another process too.

    >>> reference_to(Code)
    'robust_nc.io.user_code:Code'

    Raises `ConfigError` for what has no place of its own, such as a lambda.
    """
    place, name = str(part.__module__), str(part.__qualname__)
    if place == "__main__":
        place = str(getattr(sys.modules["__main__"], "__file__", ""))
    if not name.isidentifier() or not place:
        raise ConfigError(
            f"{name} must stand at the top of a module or a file, so that other processes and "
            "later runs find it"
        )
    return f"{place}:{name}"


def lacks(code: Code) -> ConfigError:
    """Say that a place has nothing of that name that could be called."""
    return ConfigError(
        f"{code.place} has no callable {code.name!r}, which '{code.place}:{code.name}' names"
    )


@contextlib.contextmanager
def findable(code: Code) -> Iterator[None]:
    """Let code import what lies beside its file, as a script may; a module, what lies here."""
    folder = str(Path(code.place).resolve().parent) if code.is_file else str(Path.cwd())
    if folder in sys.path:
        yield
        return
    # In front, as a script's folder is; the working folder last, so that it hides nothing.
    sys.path.insert(0 if code.is_file else len(sys.path), folder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the code may have removed it
            sys.path.remove(folder)


def told(error: BaseException) -> str:
    """Name an error of a stranger's code in a few words, with the line that raised it.

    >>> told(ZeroDivisionError("by hand"))
    'ZeroDivisionError: by hand'
    """
    said = " ".join(str(error).split())[:300]
    lines = [
        f" ({Path(frame.f_code.co_filename).name}, line {line})"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if not frame.f_code.co_filename.startswith(_OF_OTHERS)
        and "site-packages" not in frame.f_code.co_filename
    ]
    return f"{type(error).__name__}{': ' if said else ''}{said}{lines[-1] if lines else ''}"


def _module(code: Code, valid: str) -> ModuleType:
    try:
        return importlib.import_module(code.place)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{code.place}.".startswith(f"{error.name}."):
            raise _failed(code, error) from error  # the module is there, what it needs is not
        raise ConfigError(
            f"'{code.place}:{code.name}' names the module {code.place!r}, which is not found "
            f"({error}); valid: {valid}"
        ) from None
    except (Exception, SystemExit) as error:  # a stranger's module may raise anything
        raise _failed(code, error) from error


def _file(code: Code) -> ModuleType:
    path = Path(code.place)
    if not path.is_file():
        raise ConfigError(f"'{code.place}:{code.name}' names the file {path}, which does not exist")
    main = sys.modules["__main__"]
    script = getattr(main, "__file__", None)
    if script and Path(script).resolve() == path.resolve():
        return main  # the script that runs: a second time it would do all that it does again
    name = f"_robust_nc_user_{path.stem}_{digest(str(path.resolve()))[:8]}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a stranger's file may raise anything
        sys.modules.pop(spec.name, None)
        raise _failed(code, error) from error
    return module


def _failed(code: Code, error: BaseException) -> ConfigError:
    return ConfigError(
        f"'{code.place}:{code.name}' names {code.place}, which cannot be run: {told(error)}"
    )
