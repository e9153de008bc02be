"""From a reference to a model: one's own code, and what names no model."""

import json
import random
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from helpers_reference import SHAPE, hub_folder, net_state, opened, write_code
from torch import nn

from robust_nc.exceptions import ConfigError, InputError
from robust_nc.io.digests import state_digests
from robust_nc.io.untrusted import file_name
from robust_nc.record.folder import NOT_RECORDS
from robust_nc.zoo import code as guard
from robust_nc.zoo.reference import FORMS, name_of, open_model


@pytest.fixture
def net(tmp_path: Path) -> Path:
    return write_code(tmp_path)


class TestOwnCode:
    @pytest.mark.parametrize("name", ["make", "Net", "READY"])
    def test_a_function_a_class_and_a_module_serve(self, net: Path, name: str) -> None:
        found = opened(f"{net}:{name}")
        assert found.model(torch.rand(3, *SHAPE)).shape == (3, 10)
        assert not any(module.training for module in found.model.modules())
        assert found.reference == f"{net}:{name}"
        assert found.name == f"net-{name}"
        assert found.digests == state_digests(found.model)
        assert found.facts == {}

    def test_requires_grad_stays(self, net: Path) -> None:
        model = opened(f"{net}:make").model
        frozen = [name for name, value in model.named_parameters() if not value.requires_grad]
        assert frozen == ["out.bias"]

    def test_what_it_prints_goes_to_stderr(
        self, net: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        loud = "\nimport os\n\ndef loud():\n    os.system('echo child')\n    return make()\n"
        net.write_text(net.read_text() + loud)
        opened(f"{net}:loud")
        print("ours")
        out, err = capfd.readouterr()
        assert out == "ours\n"
        assert "building" in err
        assert "child" in err

    def test_draws_are_the_same_each_time_and_the_callers_own_stay(self, net: Path) -> None:
        before = torch.get_rng_state()
        assert opened(f"{net}:Net").digests == opened(f"{net}:Net").digests
        assert torch.equal(before, torch.get_rng_state())

    def test_the_settings_of_torch_and_the_process_are_put_back(self, net: Path) -> None:
        changes = (
            "\nimport os\n\ndef rude():\n    os.chdir('/')\n    made = Net()\n"
            "    torch.set_default_dtype(torch.float64)\n    torch.set_grad_enabled(False)\n"
            "    torch.set_default_device('meta')\n    sys.argv = ['other']\n    return made\n"
        )
        net.write_text(net.read_text() + changes)
        here, argv, path = Path.cwd(), list(sys.argv), list(sys.path)
        opened(f"{net}:rude")
        assert Path.cwd() == here
        assert sys.argv == argv
        assert sys.path == path
        assert torch.get_default_dtype() == torch.float32
        assert torch.is_grad_enabled()
        assert torch.zeros(1).device.type == "cpu"

    def test_our_arguments_are_not_its_own(
        self, net: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "argv", ["robust-nc", "evaluate", "x"])
        assert opened(f"{net}:arguments").name == "net-arguments"

    def test_a_file_finds_what_lies_beside_it(self, tmp_path: Path) -> None:
        folder = tmp_path / "project"
        folder.mkdir()
        (folder / "layers_of_this_test.py").write_text("from torch import nn\nFlat = nn.Flatten\n")
        (folder / "main.py").write_text(
            "def make():\n    from layers_of_this_test import Flat\n    return Flat()\n"
        )
        assert isinstance(opened(f"{folder}/main.py:make", 64).model, nn.Flatten)

    def test_a_module_of_the_working_folder_is_found(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        package = tmp_path / "a_package_of_this_test"
        package.mkdir()
        write_code(package)
        monkeypatch.chdir(tmp_path)
        assert opened("a_package_of_this_test.net:make").name == "a_package_of_this_test.net-make"

    def test_a_folder_with_a_question_mark_or_a_colon_serves(self, tmp_path: Path) -> None:
        for name in ("what?", "C:", "a?b=c"):
            folder = tmp_path / name
            folder.mkdir()
            assert opened(f"{write_code(folder)}:make").name == "net-make"

    @pytest.mark.parametrize(
        ("name", "sentence"),
        [
            ("absent", r"net\.py has no callable 'absent'"),
            ("LIMIT", r"net\.py has no callable 'LIMIT'"),
            ("needs", "needs width; give it defaults"),
            ("pair", "tuple with one in it; return the model alone"),
            ("weights", "must return a torch.nn.Module, found OrderedDict|a dict; build"),
            ("nothing", "must return a torch.nn.Module, found NoneType"),
            ("same", "found the class Net; return an instance"),
            ("raises", r"net:?\S* failed: ZeroDivisionError: by hand \(net\.py, line \d+\)"),
            ("leaves", "failed: SystemExit: no GPU, no fun"),
        ],
    )
    def test_what_makes_no_model_is_one_sentence(self, net: Path, name: str, sentence: str) -> None:
        with pytest.raises(ConfigError, match=sentence) as caught:
            opened(f"{net}:{name}")
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("text", ["import sys\nsys.exit(2)\n", "def broken(:\n", "1 / 0\n"])
    def test_a_file_that_cannot_be_run_is_one_sentence(self, net: Path, text: str) -> None:
        net.write_text(text)
        with pytest.raises(ConfigError, match=r"net\.py, which cannot be run"):
            opened(f"{net}:make")

    def test_a_dependency_that_is_missing_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "needy_of_this_test.py").write_text("import nowhere_at_all\n")
        monkeypatch.chdir(tmp_path)
        with pytest.raises(
            ConfigError, match=r"cannot be run: ModuleNotFoundError.*nowhere_at_all"
        ):
            opened("needy_of_this_test:make")
        with pytest.raises(ConfigError, match=r"'nobody.made', which is not found"):
            opened("nobody.made:this")

    def test_an_interrupt_passes(self, net: Path) -> None:
        with pytest.raises(KeyboardInterrupt):
            opened(f"{net}:interrupted")

    def test_a_model_of_too_few_classes_is_refused(self, net: Path) -> None:
        with pytest.raises(InputError, match=r"net\.py:five tells 5 classes apart.* have 10"):
            opened(f"{net}:five")
        said: list[str] = []
        opened(f"{net}:make", 9, tell=said.append)
        assert "has 10 classes, the data 9" in said[0]

    def test_a_model_that_gives_no_logits_is_refused(self) -> None:
        with pytest.raises(InputError, match=r"torch.nn:Identity: the model must return logits"):
            opened("torch.nn:Identity")


class TestAnyReference:
    @pytest.mark.parametrize(
        "reference",
        ["resnet18", "mine.py", "a:b:c", "module:name.part", "folder?which=last", "C:\\a\\b.pt"],
    )
    def test_an_unknown_form_is_answered_with_all(self, reference: str) -> None:
        with pytest.raises(ConfigError) as caught:
            opened(reference)
        for form in FORMS:
            assert form in str(caught.value)

    @pytest.mark.parametrize("reference", ["", "  ", "a\0b:c", "x" * 5000, "x" * 5000 + ".py:f"])
    def test_what_is_no_text_for_a_path_is_answered(self, reference: str) -> None:
        with pytest.raises(ConfigError, match=r"model|not be run|failed|does not exist"):
            opened(reference)

    def test_a_repository_without_its_prefix_is_recognised(self) -> None:
        with pytest.raises(ConfigError, match=r"no folder 'someone/net'.* write hf:someone/net"):
            opened("someone/net")

    @pytest.mark.parametrize(
        ("name", "sentence"),
        [
            ("net.py", r"name the function that returns the model, \S*net\.py:NAME"),
            ("w.safetensors", r"weights without their architecture.*timm:NAME\?weights="),
            ("w.zip", "an archive, which is not opened; unpack it"),
            ("notes.txt", "is no model; valid: package.module:factory"),
        ],
    )
    def test_a_file_that_is_no_model_is_answered(
        self, tmp_path: Path, name: str, sentence: str
    ) -> None:
        (tmp_path / name).write_text("x")
        with pytest.raises(ConfigError, match=sentence):
            opened(tmp_path / name)

    def test_a_path_wins_over_a_module(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        hub_folder(tmp_path / "torch.nn:Flatten", net_state(), {})
        with pytest.raises(ConfigError, match="does not say what its weights belong to"):
            opened("torch.nn:Flatten")

    def test_an_empty_folder_is_answered(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"holds no model: neither best\.json"):
            opened(tmp_path)

    def test_names_are_safe(self) -> None:
        letters = "ab./\\:?&=-_ %\u00e9\n\u4e2dC"
        draw = random.Random(0)
        references = ["".join(draw.choices(letters, k=draw.randint(1, 200))) for _ in range(300)]
        references += [*NOT_RECORDS, "..", "/", "timm:" + "x" * 300, "-rf", "..\\..\\x", "a/../b"]
        names = [name_of(reference) for reference in references]
        for name in names:
            assert file_name(name, what="name") == name
            assert len(name) <= 80
            assert name not in NOT_RECORDS
        assert name_of("timm:" + "x" * 300) != name_of("timm:" + "x" * 301)

    def test_opening_is_light(self) -> None:
        """No optional package is imported before a reference asks for it."""
        code = "import sys; import robust_nc.zoo.reference; print(*sys.modules)"
        ran = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert not {"huggingface_hub", "timm", "robustbench"} & set(ran.stdout.split())


class TestTime:
    @pytest.fixture
    def hanging(self, net: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr(guard, "NOTICE_SECONDS", 0.1)
        monkeypatch.setattr(guard, "LIMIT_SECONDS", 0.3)
        code = (
            "\nimport time\n\ndef hangs():\n    while True:\n        try:\n"
            "            time.sleep(9)\n        except Exception:\n            pass\n"
            "\n\ndef slow():\n    time.sleep(0.2)\n    return Net()\n"
        )
        net.write_text(net.read_text() + code)
        return net

    def test_what_hangs_is_told_and_given_up(self, hanging: Path) -> None:
        before = signal.getsignal(signal.SIGALRM)
        said: list[str] = []
        with pytest.raises(ConfigError, match=r"hangs was not done after 0\.3 s and was given up"):
            opened(f"{hanging}:hangs", tell=said.append)
        assert len(said) == 1
        assert "has been running for 0.1 s" in said[0]
        assert signal.getsignal(signal.SIGALRM) is before
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)

    def test_what_is_slow_is_told_and_waited_for(self, hanging: Path) -> None:
        said: list[str] = []
        assert opened(f"{hanging}:slow", tell=said.append).name == "net-slow"
        assert len(said) == 1

    def test_in_another_thread_there_is_no_limit(self, hanging: Path) -> None:
        with ThreadPoolExecutor(1) as pool:
            found = pool.submit(opened, f"{hanging}:slow").result()
        assert found.name == "net-slow"


def test_the_documented_call(net: Path) -> None:
    found = open_model(f"{net}:make", num_classes=10, image_shape=SHAPE)
    assert json.dumps(dict(found.digests))
