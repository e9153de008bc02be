"""From a reference to a model: own code, checkpoints and records, the Hub, timm."""

import dataclasses
import importlib.machinery
import random
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import safetensors.torch
import torch
from helpers_models import same_weights, small_config, small_run
from helpers_reference import SHAPE, hub_folder, net_state, opened, write_code
from helpers_report import record_of
from torch import nn

from robust_nc.config import ModelConfig, plain, read
from robust_nc.exceptions import CheckpointError, ConfigError, InputError, UnknownNameError
from robust_nc.io.digests import state_digests
from robust_nc.io.untrusted import file_name
from robust_nc.models.build import build_model
from robust_nc.record import File, Record, Weights, read_record, write_record
from robust_nc.record.folder import NOT_RECORDS
from robust_nc.training.checkpoint import read_manifest
from robust_nc.zoo import code as guard
from robust_nc.zoo.reference import FORMS, name_of


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
            "\nimport os\n\ndef rude():\n    assert sys.argv[1:] == [], 'ours are not its own'\n"
            "    os.chdir('/')\n    made = Net()\n"
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
        with pytest.raises(ConfigError, match=r"run: ModuleNotFoundError.*nowhere_at_all"):
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
        "reference", ["resnet18", "mine.py", "a:b:c", "module:name.part", "C:\\a\\b.pt"]
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

    def test_in_another_thread_there_is_no_limit(self, hanging: Path) -> None:
        with ThreadPoolExecutor(1) as pool:
            found = pool.submit(opened, f"{hanging}:slow").result()
        assert found.name == "net-slow"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The record of a cell, as a run leaves it beside its checkpoints."""
    folder = tmp_path_factory.mktemp("suite") / "out"
    config = small_config(objective="pgd", epochs=2)
    small_run(config, folder / "checkpoints" / "00ff")
    named = [
        read_manifest(folder / "checkpoints" / "00ff" / f"{which}.json")["tensors"]
        for which in ("best", "last")
    ]
    best, last = (
        File(path=f"checkpoints/00ff/{file['name']}", sha256=file["sha256"]) for file in named
    )
    record = dataclasses.replace(
        record_of(config), weights=Weights(parameters=1, best=best, last=last)
    )
    write_record(folder / "model" / "cell.json", record)
    return folder / "model" / "cell.json"


class TestCheckpoints:
    def test_a_folder_holds_best_and_last(self, tmp_path: Path) -> None:
        trained = small_run(small_config(objective="pgd"), tmp_path / "cell")
        best, last = opened(tmp_path / "cell"), opened(f"{tmp_path}/cell?which=last")
        assert same_weights(best.model, trained.best)
        assert same_weights(last.model, trained.last)
        assert same_weights(opened(tmp_path / "cell" / "last.json").model, trained.last)
        assert best.facts == {"head": "linear", "objective": "pgd", "backbone": "small_cnn"}
        assert (best.name, last.name) == ("cell", "cell-last")
        assert opened(tmp_path / "cell" / "best.json").name == "cell"
        with pytest.raises(UnknownNameError, match="unknown checkpoint 'lst'; did you mean 'last'"):
            opened(f"{tmp_path}/cell?which=lst")
        with pytest.raises(UnknownNameError, match="part of a checkpoint reference 'wich'"):
            opened(f"{tmp_path}/cell?wich=last")

    def test_a_record_leads_to_its_weights(self, out: Path) -> None:
        stored = read_record(out)
        found = opened(stored.path)
        assert stored.record.weights.best is not None
        folder = (out.parent.parent / stored.record.weights.best.path).parent
        assert found.digests == opened(folder).digests
        assert found.facts["head"] == stored.record.head
        assert opened(f"{stored.path}?which=last").digests == opened(f"{folder}?which=last").digests

    def test_a_record_with_other_weights_is_refused(self, out: Path, tmp_path: Path) -> None:
        record = read_record(out).record
        values = plain(record)

        def with_best(best: object) -> Path:
            path = tmp_path / "out" / "model" / "cell.json"
            weights = values["weights"] | {"best": best}
            write_record(path, read(Record, values | {"weights": weights}))
            return path

        file = values["weights"]["best"]
        with pytest.raises(CheckpointError, match=r"are not here: there is no .*best\.json"):
            opened(with_best(file))
        with pytest.raises(CheckpointError, match="of a model that came finished"):
            opened(with_best(None))
        for path in ("../secret/best-0.safetensors", "/etc/best-0.safetensors", "", "a/./.b/c"):
            with pytest.raises(CheckpointError, match=r"must be a plain file name|lie outside"):
                opened(with_best(file | {"path": path}))
        real = out.parent.parent / "checkpoints"
        (tmp_path / "out" / "checkpoints").symlink_to(real)
        with pytest.raises(CheckpointError, match="lie outside"):
            opened(with_best(file))
        (tmp_path / "out" / "checkpoints").unlink()
        real.rename(tmp_path / "out" / "checkpoints")
        try:
            assert opened(with_best(file)).facts["head"] == record.head
            with pytest.raises(CheckpointError, match="another SHA-256"):
                opened(with_best(file | {"sha256": "0" * 64}))
        finally:
            (tmp_path / "out" / "checkpoints").rename(real)


class TestHub:
    def test_a_class_is_built_from_the_config(self, net: Path, tmp_path: Path) -> None:
        state = net_state(width=7)
        folder = hub_folder(tmp_path / "hub", state, {"width": 7, "model_type": "net"})
        said: list[str] = []
        found = opened(f"{folder}?class={net}:Net", tell=said.append)
        assert torch.equal(found.model.out.weight, state["out.weight"])
        assert (found.name, found.facts) == ("hub", {})
        assert said == [f"{net}:Net takes no model_type of config.json; left out"]

    def test_a_class_may_take_the_whole_config_or_none(self, net: Path, tmp_path: Path) -> None:
        folder = hub_folder(tmp_path / "whole", net_state(3), {"width": 3, "classes": 10})
        assert opened(f"{folder}?class={net}:Configured").model.out.in_features == 3
        assert opened(f"{hub_folder(tmp_path / 'bare', net_state())}?class={net}:Net")
        nothing = hub_folder(tmp_path / "none", {}, {"task": "none"})
        assert opened(f"{nothing}?class={net}:Plain").digests == {}

    def test_weights_that_share_memory_are_stored_once(self, net: Path, tmp_path: Path) -> None:
        state = {**net_state(10), "first.bias": torch.zeros(10)}
        model = opened(f"{hub_folder(tmp_path / 'tied', state)}?class={net}:Tied").model
        assert torch.equal(model.first.weight, state["out.weight"])

    def test_what_the_mixin_writes_is_read(self, net: Path, tmp_path: Path) -> None:
        pytest.importorskip("huggingface_hub")
        code = (
            "\nfrom huggingface_hub import PyTorchModelHubMixin\n\n"
            "class Pushed(nn.Module, PyTorchModelHubMixin):\n"
            "    def __init__(self, width: int = 4):\n        super().__init__()\n"
            "        self.net = Net(width)\n\n"
            "    def forward(self, images):\n        return self.net(images)\n"
        )
        net.write_text(net.read_text() + code)
        sys.path.insert(0, str(net.parent))
        try:
            pushed = __import__("net").Pushed(width=9)
        finally:
            sys.path.remove(str(net.parent))
            del sys.modules["net"]
        pushed.save_pretrained(tmp_path / "pushed")
        found = opened(f"{tmp_path}/pushed?class={net}:Pushed")
        assert same_weights(found.model, pushed)

    def test_a_model_of_ours_says_so_itself(self, tmp_path: Path) -> None:
        config = ModelConfig(num_classes=10, image_shape=SHAPE)
        model = build_model(config, seed=3)
        own = {"robust_nc": {"model": plain(config), "seed": 0}}
        folder = hub_folder(tmp_path / "ours", dict(model.state_dict()), own)
        found = opened(folder)
        assert same_weights(found.model, model)
        assert found.facts == {"head": "linear", "objective": "", "backbone": "small_cnn"}

    def test_without_a_class_the_sentence_says_what_to_add(self, tmp_path: Path) -> None:
        folder = hub_folder(tmp_path / "hub", net_state(), {"width": 6})
        with pytest.raises(ConfigError, match=r"hub\?class=package\.module:Class or class=file"):
            opened(folder)

    @pytest.mark.parametrize(
        ("change", "sentence"),
        [
            ({"out.weight": torch.zeros(10, 7)}, r"out\.weight: \(10, 7\) instead of \(10, 6\)"),
            ({"extra": torch.zeros(1)}, "it holds unknown extra"),
            ({"out.bias": None}, r"it lacks out\.bias"),
            ({name: torch.zeros(1) for name in "abcde"}, "a, b, c and 2 more"),
        ],
    )
    def test_weights_are_loaded_strictly(
        self, net: Path, tmp_path: Path, change: dict[str, torch.Tensor | None], sentence: str
    ) -> None:
        state = {k: v for k, v in (net_state() | change).items() if v is not None}
        with pytest.raises(CheckpointError, match=sentence):
            opened(f"{hub_folder(tmp_path / 'hub', state)}?class={net}:Net")

    def test_a_class_that_needs_more_is_answered(self, net: Path, tmp_path: Path) -> None:
        folder = hub_folder(tmp_path / "hub", net_state(), {"classes": 10})
        with pytest.raises(
            ConfigError, match=r"needs width, which config.json lacks; it holds cla"
        ):
            opened(f"{folder}?class={net}:needs")
        with pytest.raises(ConfigError, match=r"class must be package\.module:Class or .*'Net'"):
            opened(f"{folder}?class=Net")

    def test_a_repository_is_fetched_without_pickles(
        self, net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[object] = []

        def snapshot_download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
            print("progress")
            asked.append((name, revision, allow_patterns))
            return str(hub_folder(tmp_path / "snapshots" / "abc123", net_state(), {}))

        stand_in = SimpleNamespace(snapshot_download=snapshot_download)
        monkeypatch.setitem(sys.modules, "huggingface_hub", stand_in)
        said: list[str] = []
        found = opened(f"hf:some-one/net.1?class={net}:Net", tell=said.append)
        assert found.name == "some-one-net.1"
        assert "add revision=abc123" in said[0]
        opened(f"hf:some-one/net.1?revision=v2&class={net}:Net")
        assert [(name, revision) for name, revision, _ in asked] == [
            ("some-one/net.1", None),
            ("some-one/net.1", "v2"),
        ]
        assert set(asked[0][2]) <= {"config.json", "model.safetensors", "*.safetensors"}

    def test_out_of_reach_is_one_sentence(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def snapshot_download(*_: object, **__: object) -> str:
            raise OSError("no network\nand a long story")

        stand_in = SimpleNamespace(snapshot_download=snapshot_download)
        monkeypatch.setitem(sys.modules, "huggingface_hub", stand_in)
        with pytest.raises(ConfigError, match=r"cannot be fetched .OSError: no network") as caught:
            opened("hf:someone/net")
        assert "\n" not in str(caught.value)
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        with pytest.raises(ConfigError, match=r"robust_nc\[hub\]"):
            opened("hf:someone/net")

    @pytest.mark.parametrize("name", ["", "net", "../net", "a/b/c", "a/..", "a/b c"])
    def test_a_name_of_no_repository_is_refused(self, name: str) -> None:
        with pytest.raises(ConfigError, match="expected hf:OWNER/NAME"):
            opened(f"hf:{name}")


class Network(nn.Module):
    """What timm makes: logits, and what it knows of the images it was made for."""

    def __init__(self, num_classes: int, in_chans: int) -> None:
        super().__init__()
        self.pretrained_cfg = {"mean": (0.25,) * in_chans, "std": (0.5,) * in_chans}
        self.fc = nn.Linear(64 * in_chans, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(images.flatten(1))


class TestTimm:
    @pytest.fixture(autouse=True)
    def timm(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def create_model(
            name: str, *, pretrained: bool, num_classes: int, in_chans: int
        ) -> nn.Module:
            assert not pretrained, "nothing is fetched"
            made = Network(num_classes, in_chans)
            if name == "bare":
                made.pretrained_cfg = {}
            return made

        module = ModuleType("timm")
        module.__spec__ = importlib.machinery.ModuleSpec("timm", None)
        module.is_model = lambda name: name in {"tiny.v1", "bare"}
        module.list_models = lambda: ["tiny.v1", "bare"]
        module.get_pretrained_cfg = lambda name: SimpleNamespace(fixed_input_size=False)
        module.create_model = create_model
        monkeypatch.setitem(sys.modules, "timm", module)

    @pytest.mark.parametrize("suffix", ["safetensors", "pt"])
    def test_local_weights_are_loaded_and_images_normalised(
        self, tmp_path: Path, suffix: str
    ) -> None:
        source = Network(10, 1)
        path = tmp_path / f"w.{suffix}"
        if suffix == "pt":
            torch.save({"state_dict": source.state_dict(), "epoch": 3}, path)
        else:
            safetensors.torch.save_file(source.state_dict(), path)
        said: list[str] = []
        found = opened(f"timm:tiny.v1?weights={path}", tell=said.append)
        images = torch.rand(4, *SHAPE)
        assert torch.allclose(found.model(images), source((images - 0.25) / 0.5))
        assert found.name == "timm-tiny.v1"
        assert said == ["images are normalised as timm's tiny.v1 says: mean 0.25, std 0.5"]

    def test_what_does_not_serve_is_one_sentence(self, tmp_path: Path) -> None:
        path = tmp_path / "w.safetensors"
        safetensors.torch.save_file(Network(7, 1).state_dict(), path)
        for reference, sentence in (
            ("timm:tiny.v1", r"names no weights.*\?weights=FILE"),
            (f"timm:tiny.v2?weights={path}", r"no model 'tiny\.v2'; did you mean 'tiny\.v1'"),
            (f"timm:tiny.v1?weight={path}", "did you mean 'weights'"),
            (f"timm:bare?weights={path}", "no mean and std of 1 channels"),
            (f"timm:tiny.v1?weights={path}.gone", "there is no weight file"),
            (f"timm:tiny.v1?weights={path}", r"with 10 classes.*fc\.weight: \(7, 64\) instead"),
        ):
            with pytest.raises((ConfigError, CheckpointError), match=sentence):
                opened(reference)
