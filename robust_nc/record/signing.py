"""Signatures of OpenSSH at the end of a text, as git puts them at the end of a tag.

>>> split("{}\\n") is None
True
"""

import functools
import re
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import NamedTuple

from robust_nc.exceptions import InputError

NAMESPACE = "robust-nc-receipt"
SIGNERS = "allowed_signers"
_BEGIN = "-----BEGIN SSH SIGNATURE-----\n"
_NAME = re.compile(r"[\w.+@-]{1,100}")
_SECONDS = 20


class Signed(NamedTuple):
    """A text and the signature behind it."""

    text: str
    signature: str


def split(content: str) -> Signed | None:
    """Cut a signed text in two; None where there is no signature."""
    at = content.find("\n" + _BEGIN) + 1
    return Signed(content[:at], content[at:]) if at else None


def signer_name(key: Path) -> str:
    """Return the name that a key signs under: the comment of its public half.

    Raises `InputError` for a file that is no key of OpenSSH, or whose public half has no comment.
    """
    public = key if key.suffix == ".pub" else key.with_name(f"{key.name}.pub")
    try:
        words = public.read_text().split()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{public} cannot be read ({error}); --sign takes a key of OpenSSH, as made by "
            "ssh-keygen -t ed25519 -C NAME, with its public half beside it"
        ) from None
    if len(words) != 3 or not _NAME.fullmatch(words[2]):
        raise InputError(
            f"{public} must hold a kind, a key and one name of letters, digits and .+@-; change it "
            f"with ssh-keygen -c -f {key}"
        )
    return words[2]


def sign(text: str, key: Path) -> str:
    """Return `text` with a signature behind it; asks for the key's passphrase on the terminal."""
    text = text if text.endswith("\n") else text + "\n"
    words = [_program(), "-q", "-Y", "sign", "-f", str(key), "-n", NAMESPACE]
    ran = subprocess.run(words, input=text.encode(), capture_output=True, check=False)
    if ran.returncode or not ran.stdout.startswith(_BEGIN.encode()):
        told = ran.stderr.decode(errors="replace").strip()
        raise InputError(f"ssh-keygen could not sign with {key}: {told or 'it said nothing'}")
    return text + ran.stdout.decode()


def is_signed_by(signed: Signed, name: str, signers: Path) -> bool:
    """Whether a key that the file `signers` allows for `name` signed the text.

    False where that file is missing or the name could be none; without ssh-keygen as well, with a
    warning.
    """
    if not _NAME.fullmatch(name):
        return False
    try:
        return _verified(*signed, name, signers.read_text())
    except (OSError, UnicodeDecodeError):
        return False
    except InputError as error:
        warnings.warn(f"receipts count for nothing here: {error}", stacklevel=2)
        return False


@functools.lru_cache(maxsize=16_384)
def _verified(text: str, signature: str, name: str, signers: str) -> bool:
    program = _program()
    with tempfile.TemporaryDirectory() as folder:
        keys, found = Path(folder, SIGNERS), Path(folder, "signature")
        keys.write_text(signers)
        found.write_text(signature)
        words = [program, "-Y", "verify", "-f", str(keys), "-I", name, "-n", NAMESPACE]
        words += ["-s", str(found)]
        try:
            ran = subprocess.run(
                words, input=text.encode(), capture_output=True, check=False, timeout=_SECONDS
            )
        except subprocess.TimeoutExpired:
            return False
    return ran.returncode == 0


def _program() -> str:
    found = shutil.which("ssh-keygen")
    if found is None:
        raise InputError("ssh-keygen is not installed; it comes with OpenSSH 8.2 or later")
    return found
