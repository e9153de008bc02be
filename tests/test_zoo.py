"""Models of RobustBench by reference: found, built, filled from a local file, or refused."""

from enum import Enum
from types import SimpleNamespace

import pytest
import torch
from helpers_attacks import linear
from torch import nn

from robust_nc.exceptions import CheckpointError, ConfigError, UnknownNameError
from robust_nc.io.files import sha256_of
from robust_nc.zoo import robustbench as zoo
from robust_nc.zoo.reference import open_model
from robust_nc.zoo.robustbench import load_model, read_reference


class Data(Enum):
    cifar_10 = "cifar10"
    cifar_100 = "cifar100"


class Threat(Enum):
    Linf = "Linf"
    L2 = "L2"


class Shifted(nn.Module):
    """A linear model with a constant that its weight file does not hold."""

    def __init__(self, classes=10, shift=0.5):
        super().__init__()
        self.register_buffer("mu", torch.tensor(shift))
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, classes))

    def forward(self, images):
        return self.layers(images - self.mu)


def entry(gdrive_id="id-of-the-file", **options):
    return {"model": lambda: Shifted(**options), "gdrive_id": gdrive_id}


ZOO = {
    Data.cifar_10: {
        Threat.Linf: {
            "Rice": entry("linf-id"),
            "Wide": entry(),
            "Team": entry(["a", "b"]),
            "Self": entry(None),
        },
        Threat.L2: {"Rice": entry("l2-id"), "Wide": entry(shift=0.1)},
    },
    Data.cifar_100: {Threat.Linf: {"Rice": entry("k100-id", classes=100)}},
}


@pytest.fixture(autouse=True)
def robustbench(request, monkeypatch):
    """Put a small zoo in the place of robustbench, but where the test wants the real one."""
    if request.node.get_closest_marker("peers"):
        return
    parts = {
        "robustbench.model_zoo": SimpleNamespace(model_dicts=ZOO),
        "timm": SimpleNamespace(is_model=lambda name: False),
    }
    monkeypatch.setattr(zoo, "import_peer", lambda module, library: parts[module])


@pytest.fixture
def weights(tmp_path):
    """Weights as they are published: wrapped, prefixed, without the constant."""
    state = {f"module.{key}": value for key, value in Shifted().state_dict().items()}
    del state["module.mu"]
    path = tmp_path / "rice.pt"
    torch.save({"epoch": 3, "state_dict": state}, path)
    return path


def test_a_model_is_built_and_filled_strictly(weights):
    before = torch.get_rng_state()
    loaded = load_model(f"robustbench:Rice?weights={weights}")
    assert torch.equal(before, torch.get_rng_state())
    state = torch.load(weights, weights_only=True)["state_dict"]
    assert torch.equal(loaded.model.layers[1].weight, state["module.layers.1.weight"])
    assert not loaded.model.training
    assert float(loaded.model.mu) == 0.5
    assert loaded.sha256 == sha256_of(weights)
    assert loaded.reference.startswith("robustbench:Rice?")
    found = open_model(loaded.reference, num_classes=10, image_shape=(3, 32, 32))
    assert torch.equal(found.model.layers[1].weight, loaded.model.layers[1].weight)
    assert found.name == "robustbench-Rice"


def test_models_that_differ_are_to_be_chosen(weights):
    with pytest.raises(ConfigError, match=r"several.*threat_model=Linf or &dataset.*_model=L2"):
        load_model(f"robustbench:Wide?weights={weights}")
    loaded = load_model(f"robustbench:Wide?weights={weights}&dataset=cifar10&threat_model=L2")
    assert float(loaded.model.mu) == pytest.approx(0.1)


def test_a_missing_file_is_answered_with_where_it_comes_from(tmp_path):
    with pytest.raises(CheckpointError, match=r"no file .*/rice.pt: fetch it.*id=linf-id") as told:
        load_model(f"robustbench:Rice?weights={tmp_path}/rice.pt&dataset=cifar10")
    assert "l2-id" in str(told.value)
    assert "k100-id" not in str(told.value)
    with pytest.raises(CheckpointError, match=r"names no weights.*weights=models/Rice.pt"):
        load_model("robustbench:Rice")


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("Rice?weights=a", "robustbench:NAME"),
        ("robustbench:Rica", "did you mean 'Rice'"),
        ("robustbench:Rice?weight=a", "did you mean 'weights'"),
        ("robustbench:Rice?dataset=mnist", "dataset=cifar100&threat_model=Linf only"),
        ("robustbench:Team?weights=WEIGHTS", "ensemble of 2"),
        ("robustbench:Self?weights=WEIGHTS", "fetches its"),
    ],
)
def test_a_bad_reference_is_answered_with_what_is_valid(weights, reference, words):
    with pytest.raises(ConfigError, match=words):
        load_model(reference.replace("WEIGHTS", str(weights)))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"epoch": 3}, "no state_dict; its keys: epoch"),
        ({"state_dict": linear((3, 32, 32), 10).state_dict()}, "lacks layers.1.weight"),
        (Shifted(classes=7).state_dict(), "other shapes in layers.1.weight"),
    ],
)
def test_a_file_that_does_not_serve_is_refused(tmp_path, content, words):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=words):
        load_model(f"robustbench:Rice?weights={tmp_path / 'w.pt'}")


def test_paths_may_be_escaped():
    assert read_reference("robustbench:A?weights=a%26b+c.pt").weights == "a&b+c.pt"


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
class TestTheZoo:
    @pytest.mark.parametrize("name", ["Rice2020Overfitting", "Debenedetti2022Light_XCiT-S12"])
    def test_an_architecture_loads_its_weights(self, tmp_path, name):
        candidate = zoo.find(zoo.ZooReference(name, "cifar10", "Linf"))[0]
        original = zoo._build(name, candidate).eval()
        path = tmp_path / "w.pt"
        state = {f"module.{key}": value for key, value in original.state_dict().items()}
        torch.save({"state_dict": state}, path)
        loaded = load_model(f"robustbench:{name}?weights={path}")
        images = torch.rand(2, 3, 32, 32)
        with torch.no_grad():
            assert torch.equal(loaded.model(images), original(images))

    def test_an_unknown_name_is_answered_with_the_nearest(self):
        with pytest.raises(UnknownNameError, match="Rice2020Overfitting"):
            load_model("robustbench:Rice2020Overfiting?weights=w.pt")
