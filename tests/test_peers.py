"""The packages of others: what is wrong with them is found and answered; together they work."""

import base64
import hashlib
import importlib
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from helpers_attacks import linear, predictions
from helpers_runner import cli

from robust_nc.cli import doctor
from robust_nc.exceptions import ConfigError
from robust_nc.runtime import third_party as peers
from robust_nc.runtime.third_party import (
    Peer,
    changed_files,
    check_robustbench,
    import_peer,
    peer_state,
    remedy_for,
)


def install(folder: Path, module: str, version: str, files: dict[str, str]) -> None:
    """Lay out a distribution as pip does, with the hashes of its files."""
    lines = []
    for name, text in files.items():
        path = folder / module / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        found = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest())
        lines.append(f"{module}/{name},sha256={found.rstrip(b'=').decode()},{len(text)}")
    info = folder / f"{module}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: {version}\n")
    (info / "RECORD").write_text("\n".join([*lines, f"{info.name}/RECORD,,", ""]))


@pytest.fixture
def site(tmp_path, monkeypatch):
    """An empty folder of packages, the only one besides the standard library's and ours."""
    monkeypatch.syspath_prepend(str(tmp_path))
    loaded = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - loaded:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


class TestStaleFiles:
    def test_files_are_compared_with_the_record(self, site):
        install(site, "borrowed", "1.0", {"__init__.py": "", "eval.py": "new", "zoo.py": "zoo"})
        assert changed_files("borrowed", "borrowed") == ()
        (site / "borrowed" / "eval.py").write_text("stale")
        (site / "borrowed" / "zoo.py").unlink()
        assert changed_files("borrowed", "borrowed") == ("borrowed/eval.py", "borrowed/zoo.py")

    def test_a_stale_robustbench_is_answered_with_the_remedy(self, site):
        install(site, "robustbench", "9.9", {"__init__.py": "", "eval.py": "new"})
        check_robustbench()
        (site / "robustbench" / "eval.py").write_text("what torchattacks ships")
        with pytest.raises(ConfigError, match=r"1 files .* 9\.9 .*torchattacks.*force-reinstall"):
            check_robustbench()
        with pytest.raises(ConfigError, match="force-reinstall"):
            import_peer("robustbench.eval", "robustbench")
        found = peer_state(Peer("robustbench", "robustbench", "models", None))
        assert (found.version, found.works) == ("9.9", False)
        assert "force-reinstall" in found.remedy


class TestStates:
    def part(self, module):
        return Peer(module, module, "tests", f"{module}==1.0")

    def test_what_works_has_no_remedy(self, site):
        install(site, "sound", "1.2", {"__init__.py": "import warnings; warnings.warn('old')"})
        assert peer_state(self.part("sound")) == ("1.2", True, "")

    def test_what_is_missing_says_what_to_install(self):
        assert peer_state(self.part("not_there")) == ("-", None, "pip install not_there==1.0")
        with pytest.raises(ConfigError, match="not_there is not installed here; `make peers`"):
            import_peer("not_there.attacks", "not_there")

    def test_what_is_broken_says_why_and_what_to_do(self, site):
        install(site, "shaky", "1.0", {"__init__.py": "import pkg_resources_not_there"})
        found = peer_state(self.part("shaky"))
        assert found.works is False
        assert "pkg_resources_not_there" in found.remedy
        assert "make peers" in found.remedy
        with pytest.raises(ConfigError, match=r"shaky does not import \(ModuleNotFoundError"):
            import_peer("shaky", "shaky")

    @pytest.mark.parametrize(
        ("error", "words"),
        [
            (RuntimeError("operator torchvision::nms does not exist"), "different builds"),
            (RuntimeError("torchvision has a different CUDA version"), "different builds"),
            (ModuleNotFoundError("no", name="autoattack.state"), "not installed"),
            (ModuleNotFoundError("no", name="autoattack"), "pip install ./peers"),
            (ModuleNotFoundError("no", name="pkg_resources"), "setuptools<81"),
            (ModuleNotFoundError("no", name="numba.experimental"), "needs numba"),
            (OSError("libcudart"), "make peers"),
        ],
    )
    def test_known_errors_have_a_remedy_of_their_own(self, error, words):
        assert words in remedy_for(error)


class TestDoctor:
    def test_a_broken_part_makes_the_exit_code_one(self, site, monkeypatch):
        install(site, "shaky", "1.0", {"__init__.py": "raise RuntimeError('no [luck]')"})
        monkeypatch.setattr(doctor, "_PARTS", (Peer("shaky", "shaky", "tests", None),))
        ran = cli("doctor")
        assert ran.code == 1
        assert "broken: shaky: RuntimeError: no [luck]" in ran.out

    def test_the_namesake_of_the_library_of_corruptions_is_broken(self, site, monkeypatch):
        part = next(part for part in doctor._PARTS if part.module == "imagecorruptions")
        assert doctor._state(part).works
        install(site, "imagecorruptions", "1.1.2", {"__init__.py": "glass_blur = lambda x: x"})
        monkeypatch.delitem(sys.modules, "imagecorruptions")
        found = doctor._state(part)
        assert found.works is False
        assert "pip uninstall imagecorruptions" in found.remedy

    def test_a_pin_is_explained_and_a_missing_part_is_no_fault(self, site, monkeypatch):
        install(site, "torchattacks", "3.5.1", {"__init__.py": ""})
        with (site / "torchattacks-3.5.1.dist-info" / "METADATA").open("a") as file:
            file.write("Requires-Dist: requests~=2.25.1\n")
        for name in [n for n in sys.modules if n.split(".")[0] == "torchattacks"]:
            monkeypatch.delitem(sys.modules, name)
        (part,) = [part for part in peers.PEERS if part.module == "torchattacks"]
        missing = Peer("not_there", "not-there", "tests", None)
        monkeypatch.setattr(doctor, "_PARTS", (part, missing))
        ran = cli("doctor")
        assert ran.code == 0
        assert "not installed; make peers" in ran.out
        assert "note: torchattacks: its pin requests~=2.25.1 shows in `pip check`" in ran.out


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
class TestTogether:
    def test_the_doctor_finds_everything_at_work(self):
        ran = cli("doctor")
        assert ran.code == 0
        assert "broken" not in ran.out
        assert "not installed" not in ran.out
        assert "its pin requests" in ran.out

    def test_no_file_of_robustbench_is_stale(self):
        assert changed_files("robustbench", "robustbench") == ()
        listed = metadata.distribution("torchattacks").files or ()
        shipped = [file for file in listed if file.parts[0] == "robustbench" and file.hash]
        assert len(shipped) == 25  # what would have been written over it

    @pytest.mark.parametrize("stateful", [False, True])
    def test_the_benchmark_of_robustbench_runs_on_our_engine(self, tmp_path, monkeypatch, stateful):
        evaluation = importlib.import_module("robustbench.eval")
        data = importlib.import_module("robustbench.data")
        model = linear((3, 32, 32), 10)
        images = torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        labels = predictions(model, images)
        labels[0] = (labels[0] + 1) % 10
        loaders = {key: lambda *_: (images, labels) for key in data._clean_dataset_loaders}
        monkeypatch.setattr(data, "_clean_dataset_loaders", loaders)
        clean, robust = evaluation.benchmark(
            model,
            n_examples=12,
            eps=8 / 255,
            log_path=str(tmp_path / "log.txt"),
            aa_state_path=tmp_path / "state" if stateful else None,
        )
        assert clean == pytest.approx(11 / 12)
        assert robust == 0
        assert (tmp_path / "log.txt").read_text()
