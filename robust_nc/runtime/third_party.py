"""Checks of the packages of others: what is installed, whether it works, and what to do if not.

>>> remedy_for(ModuleNotFoundError("No module named 'pkg_resources'", name="pkg_resources"))
'pip install "setuptools<81": later ones have no pkg_resources'
"""

import base64
import hashlib
import importlib
import importlib.util
import sys
import warnings
from importlib import metadata
from types import ModuleType
from typing import NamedTuple

from robust_nc.exceptions import ConfigError

_REINSTALL = "pip install --no-deps --force-reinstall robustbench==1.1.1"
_MAKE = (
    "`make peers` in a checkout of robust_nc builds .venv-peers, where it and the libraries of "
    "others work together"
)


class Peer(NamedTuple):
    """A package of others: its module, its distribution, what it is for, and where it comes from.

    `source` is what to install; None where only `make peers` does it right.
    """

    module: str
    distribution: str
    purpose: str
    source: str | None


class PeerState(NamedTuple):
    """What is known of a peer: its version, whether it works (None: not installed), what to do."""

    version: str
    works: bool | None
    remedy: str


PEERS = (
    Peer("pyautoattack", "pyautoattack", "attacks; reference for ours", "pyautoattack==0.2.0"),
    Peer("torchvision", "torchvision", "models of others", None),
    Peer("timm", "timm", "backbones of others", None),
    Peer("torchattacks", "torchattacks", "attacks of others", None),
    Peer("foolbox", "foolbox", "attacks of others", "foolbox==3.3.4"),
    Peer("adv_lib", "adv-lib", "attacks of others", None),
    Peer("autoattack", "robust-nc-autoattack", "our engine, under robustbench", "./peers"),
    Peer("robustbench", "robustbench", "models of others", None),
)


def peer_state(peer: Peer) -> PeerState:
    """Import a peer and say what it is worth; `remedy` is "" where nothing is to be done."""
    if importlib.util.find_spec(peer.module) is None:
        source = f"pip install {peer.source}" if peer.source else "make peers"
        return PeerState("-", None, source)
    version = version_of(peer.distribution)
    if peer.module == "robustbench":
        try:
            check_robustbench()
        except ConfigError as error:
            return PeerState(version, False, str(error))
    try:
        _quietly(peer.module)
    except Exception as error:  # a broken package may raise anything on import
        return PeerState(version, False, f"{_told(error)}; {remedy_for(error)}")
    return PeerState(version, True, _note(peer))


def import_peer(module: str, library: str) -> ModuleType:
    """Import a module of a peer; `ConfigError` says what to do where that fails."""
    root = module.split(".")[0]
    if root not in sys.modules and importlib.util.find_spec(root) is None:
        raise ConfigError(f"{library} is not installed here; {_MAKE}")
    if root == "robustbench":
        check_robustbench()
    try:
        return _quietly(module)
    except Exception as error:  # a broken package may raise anything on import
        raise ConfigError(
            f"{library} does not import ({_told(error)}); {remedy_for(error)}; `robust-nc doctor` "
            "looks at all libraries of others"
        ) from None


def remedy_for(error: Exception) -> str:
    """What to do about an error on import, in a few words."""
    told, missing = str(error), getattr(error, "name", None)
    if "torchvision::nms" in told or ("torchvision" in told and "CUDA" in told):
        return (
            "torch and torchvision are of different builds: install both in one command from one "
            "place, or `make peers`"
        )
    if missing == "pkg_resources":
        return 'pip install "setuptools<81": later ones have no pkg_resources'
    if missing == "autoattack":
        return "pip install ./peers, our stand-in: no registry has autoattack"
    if isinstance(error, ModuleNotFoundError) and missing:
        return f"it needs {missing.split('.')[0]}, which is not installed; {_MAKE}"
    return _MAKE


def check_robustbench() -> None:
    """Raise `ConfigError` if `robustbench/` is not what its distribution installed.

    torchattacks ships a stale copy of it, which pip writes over the real one without a word.
    """
    try:
        changed = changed_files("robustbench", "robustbench")
    except metadata.PackageNotFoundError:
        raise ConfigError(
            "robustbench/ is the stale copy that torchattacks ships, robustbench itself is not "
            f"installed: delete that folder, then {_REINSTALL}, or `make peers`"
        ) from None
    if changed:
        raise ConfigError(
            f"{len(changed)} files of robustbench/ are not those of robustbench "
            f"{version_of('robustbench')} (torchattacks writes a stale copy over it): "
            f"{_REINSTALL}, or `make peers`"
        )


def changed_files(distribution: str, package: str) -> tuple[str, ...]:
    """Files of a package that are missing or differ from the SHA-256 in the RECORD.

    Raises `PackageNotFoundError` where the distribution is not installed.
    """
    changed = []
    for file in metadata.distribution(distribution).files or ():
        if file.parts[0] != package or file.hash is None or file.hash.mode != "sha256":
            continue
        path = str(file.locate())
        try:
            with open(path, "rb") as content:  # noqa: PTH123 (locate returns no Path)
                found = hashlib.file_digest(content, "sha256").digest()
        except OSError:
            found = b""
        if base64.urlsafe_b64encode(found).rstrip(b"=").decode() != file.hash.value:
            changed.append(str(file))
    return tuple(changed)


def _note(peer: Peer) -> str:
    """What a part that works leaves to be explained."""
    if peer.module != "torchattacks":
        return ""
    pins = [pin for pin in metadata.requires(peer.distribution) or () if pin.startswith("requests")]
    if not pins:
        return ""
    return f"its pin {pins[0]} shows in `pip check`; its attacks never use requests: leave it"


def version_of(distribution: str) -> str:
    """Version of an installed distribution, "?" where it tells none."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "?"


def _quietly(module: str) -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of their imports; nothing a user could act on
        return importlib.import_module(module)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:120]}"
