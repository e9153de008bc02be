"""Pushing a record to the Hugging Face Hub: its card, the record, its rows and its evidence.

Nothing else is pushed, and never any weights.

>>> repository("me/my-model")
'me/my-model'
"""

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from robust_nc.exceptions import ConfigError
from robust_nc.exchange.hub_card import model_card
from robust_nc.exchange.record_files import challenge_files, check_whole, evidence_file, rows_file
from robust_nc.io.files import write_text
from robust_nc.io.untrusted import file_name
from robust_nc.record.schema import Stored

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


class Hub(Protocol):
    """What is used of `huggingface_hub.HfApi`."""

    def create_repo(self, repo_id: str, *, exist_ok: bool) -> Any:
        """Make a repository, unless it is there."""

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> Any:
        """Commit the files of a folder."""


class Pushed(NamedTuple):
    """The repository, and the names of the files that were pushed, sorted."""

    repository: str
    files: tuple[str, ...]


def push(stored: Stored, hub: str, *, api: Hub | None = None) -> Pushed:
    """Push a record to the repository `hub` ("OWNER/NAME"), which is made if need be.

    The evidence is pushed as it lies there, in full. Raises `RecordError` for a record that is not
    whole, `ConfigError` for a name that is none, where the client is missing, and where it fails.
    """
    name = repository(hub)
    check_whole(stored)
    files = [stored.path, rows_file(stored), *challenge_files(stored)]
    if stored.record.evidence is not None:
        files.append(evidence_file(stored))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for path in files:
            shutil.copyfile(path, folder / file_name(path.name, what="a file to push"))
        write_text(folder / "README.md", model_card(stored))
        _upload(api, name, folder, stored.record.cell)
        return Pushed(name, tuple(sorted(path.name for path in folder.iterdir())))


def repository(name: str) -> str:
    """Return the name of a repository, or raise `ConfigError` for what is none."""
    if not _REPOSITORY.fullmatch(name) or ".." in name or "--" in name:
        raise ConfigError(f"a repository of the Hub is OWNER/NAME, found {name[:80]!r}")
    return name


def _upload(api: Hub | None, name: str, folder: Path, cell: str) -> None:
    if api is None:
        try:
            from huggingface_hub import HfApi
        except ImportError:
            raise ConfigError(
                "pushing needs huggingface_hub, which is not installed: "
                "pip install 'robust_nc[hub]'"
            ) from None
        api = HfApi()
    message = f"Record {cell} of robust_nc"
    try:
        api.create_repo(name, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=str(folder), commit_message=message)
    except Exception as error:  # of the client and of what it uses, by version
        lines = str(error).strip().splitlines() or [""]
        raise ConfigError(
            f"the Hub took no push to {name} ({type(error).__name__}: {lines[0][:200]}); "
            "log in with `hf auth login`, and see whether the name is yours and the network is up"
        ) from None
