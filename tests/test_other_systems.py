"""Windows and macOS: what they lack is not asked for where a user needs it not."""

import subprocess
import sys
from pathlib import Path

LACKS = """
import importlib, os, pkgutil, signal, sys

class Without:
    def find_spec(self, name, path=None, target=None):
        if name in {"fcntl", "resource", "pwd", "grp", "termios"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Without())
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules.pop(name, None)
for name in ("SIGALRM", "ITIMER_REAL", "setitimer", "getitimer", "SIGKILL"):
    delattr(signal, name)
for name in ("fork", "getuid", "geteuid", "setsid", "memfd_create"):
    delattr(os, name)
"""
IMPORTS = """
import robust_nc, robust_nc.attacks
for package in (robust_nc, robust_nc.attacks):
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if ".ray." not in found.name and not found.name.endswith("__main__"):
            importlib.import_module(found.name)
"""
RUNS = """
from pathlib import Path
from robust_nc.cli.main import main
sys.argv = ["robust-nc", "run", "tiny.toml", "--workers", "1", "--minutes", "5", "--out", "out"]
try:
    main()
finally:
    assert not {"fcntl", "resource"} & sys.modules.keys()
"""
TINY = """
name = "tiny"
[base.data]
dataset = "digits"
train_limit = 100
test_limit = 20
[base.model]
backbone = { name = "small_cnn", width = 4 }
[base.train]
epochs = 1
[base.threat]
eps = 0.1
[base.evaluation]
protocol = "fgsm"
examples = 10
[base.measure]
train_examples = 60
test_examples = 20
steps = 1
targets = []
radii = []
trajectories = 0
"""


def python(code: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", LACKS + code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_every_module_is_imported_without_what_only_posix_has(tmp_path: Path) -> None:
    ran = python(IMPORTS, tmp_path)
    assert ran.returncode == 0, ran.stderr


def test_a_suite_runs_without_what_only_posix_has(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    ran = python(RUNS, tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert len(list((tmp_path / "out").glob("small_cnn*/*.json"))) == 1
