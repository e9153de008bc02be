"""A process with little reach, for code of strangers: what it may not do, and who sees to that.

`confined` is what to start a command with: bubblewrap, on Linux, where it works. `give_up_rights`
is for the process itself, before it runs any code of others; nothing of it can be taken back. Of
torch nothing is imported here, or its threads would come before the limits.

>>> confined(Path("/nowhere")).prefix
()
"""

import contextlib
import ctypes
import errno
import os
import platform
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

try:
    import resource
except ImportError:  # on Windows
    resource = None  # type: ignore[assignment]

MEMORY = 16 * 2**30  # bytes, and at most three quarters of what the machine has
_MAPPED = 24 * 2**30  # bytes of addresses beside them: of libraries, and what is shared
_FILE, _FILES = 2**28, 1024  # bytes that a file may have, and how many may be open
_SCRATCH = 2**28
_KEPT = ("HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "USER", "VIRTUAL_ENV")
_KEPT_KINDS = ("CUDA", "GOMP_", "HF_HOME", "KMP_", "LC_", "MKL_", "NVIDIA", "OMP_", "ROBUST_NC_")
_DEVICES = "nvidia*"

# Numbers of Linux: of the architecture, of clone and clone3, and of what is refused: fork, vfork,
# execve, execveat, socket, ptrace, process_vm_readv, process_vm_writev, kill, tkill, tgkill,
# rt_sigqueueinfo, rt_tgsigqueueinfo, pidfd_send_signal, io_uring_setup, pidfd_getfd.
_X86 = (57, 58, 59, 322, 41, 101, 310, 311, 62, 200, 234, 129, 297, 424, 425, 438)
_ARM = (221, 281, 198, 117, 270, 271, 129, 130, 131, 138, 240, 424, 425, 438)
_CALLS = {
    "x86_64": (0xC000003E, 56, 435, _X86),
    "aarch64": (0xC00000B7, 220, 435, _ARM),
}
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000, 0x80000000  # seccomp's answers
_THREAD = 0x10000  # CLONE_THREAD: a thread, not a process
_NO_NEW_PRIVILEGES, _SECCOMP, _DIE_WITH_PARENT = 38, 22, 1  # of prctl


class Confinement(NamedTuple):
    """What to start a command with, and why that is nothing, where it is ("" otherwise)."""

    prefix: tuple[str, ...]
    missing: str


def confined(scratch: Path) -> Confinement:
    """Return what bubblewrap is to be called with, if it can be used on this machine.

    Then there is no network, no other process, and no file that can be written but in `scratch`, a
    folder that is there already, which is empty and in memory inside.
    """
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        return Confinement((), "bubblewrap is not installed")
    prefix = [bwrap, "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    prefix += ["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]
    for device in sorted(map(str, Path("/dev").glob(_DEVICES))):
        prefix += ["--dev-bind", device, device]
    prefix += [
        "--remount-ro",
        "/dev",
        "--size",
        str(_SCRATCH),
        "--tmpfs",
        str(scratch),
        "--chdir",
        str(Path.cwd()),
        "--",
    ]
    try:
        tried = subprocess.run([*prefix, sys.executable, "-c", ""], capture_output=True, timeout=60)
        if tried.returncode == 0:
            return Confinement(tuple(prefix), "")
        said = tried.stderr.decode(errors="replace").strip().splitlines()
    except (OSError, subprocess.TimeoutExpired) as error:
        said = [str(error)]
    return Confinement((), f"bubblewrap does not work here ({said[0] if said else 'no word'})")


def kept_variables(scratch: Path) -> dict[str, str]:
    """Return what the process may know of the environment: no tokens, no keys."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in _KEPT or name.startswith(_KEPT_KINDS)
    }
    paths = (str(Path(place).resolve()) for place in sys.path if place)
    return kept | {"PYTHONPATH": os.pathsep.join(paths), "TMPDIR": str(scratch)}


def give_up_rights() -> bool:
    """Bound memory, files and processes of this process for good.

    Returns whether it can start no process and open no connection: on Linux, on usual machines.
    """
    if resource is None:
        return False
    with contextlib.suppress(ValueError, OSError):
        memory = min(MEMORY, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 3 // 4)
        _limit(resource.RLIMIT_DATA, memory)
        if not any(Path("/dev").glob(_DEVICES)):  # whose driver reserves addresses by the terabyte
            _limit(resource.RLIMIT_AS, memory + _MAPPED)
    for kind, value in (
        (resource.RLIMIT_FSIZE, _FILE),
        (resource.RLIMIT_NOFILE, _FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        _limit(kind, value)
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_DIE_WITH_PARENT, 9, 0, 0, 0)
    return _filtered(libc)


def _limit(kind: int, value: int) -> None:
    most = resource.getrlimit(kind)[1]
    value = value if most == resource.RLIM_INFINITY else min(value, most)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(kind, (value, value))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


def _filtered(libc: ctypes.CDLL) -> bool:
    """Let the system refuse calls from now on (seccomp(2)); whether it does."""
    numbers = _CALLS.get(platform.machine())
    if numbers is None:
        return False
    code = _filter(*numbers)
    program = _Program(len(code) // 8, code)
    pointer = ctypes.c_ulong(ctypes.addressof(program))
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
        return False
    return bool(libc.prctl(_SECCOMP, 2, pointer, 0, 0) == 0)


def _filter(architecture: int, clone: int, clone3: int, refused: tuple[int, ...]) -> bytes:
    """Assemble the filter, in the system's language of four numbers a line."""
    load, equal, above, has, answer = 0x20, 0x15, 0x35, 0x45, 0x06
    no = _REFUSE | errno.EPERM
    lines = [(load, 0, 0, 4), (equal, 1, 0, architecture), (answer, 0, 0, _KILL), (load, 0, 0, 0)]
    lines += [(above, 0, 1, 0x40000000), (answer, 0, 0, no)]  # the calls of x32
    # Its flags cannot be looked at; the C library then takes clone.
    lines += [(equal, 0, 1, clone3), (answer, 0, 0, _REFUSE | errno.ENOSYS)]
    for number in refused:
        lines += [(equal, 0, 1, number), (answer, 0, 0, no)]
    lines += [(equal, 0, 3, clone), (load, 0, 0, 16), (has, 1, 0, _THREAD), (answer, 0, 0, no)]
    lines += [(answer, 0, 0, _ALLOW)]
    return b"".join(struct.pack("<HBBI", *line) for line in lines)
