"""Models as people have them: TorchScript, exported, compiled, quantised, ONNX, Hugging Face."""

import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers_runner import cli
from torch import nn

import robust_nc
from robust_nc.exceptions import CheckpointError, ConfigError
from robust_nc.models.taps import module_taps, read_taps
from robust_nc.zoo.reference import open_model, runs_code
from robust_nc.zoo.weight_files import fill, read_weights

BALL = robust_nc.Ball("Linf", 0.1)
SHAPE = {"num_classes": 10, "image_shape": (1, 8, 8)}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)
    ).eval()


def images(n: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    return robust_nc.load_dataset("digits", split="test", limit=n)


def scripted(path: Path, how: str) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = (
            torch.jit.script(network())
            if how == "script"
            else torch.jit.trace(network(), images(2)[0])
        )
        torch.jit.save(made, path)
    return path


def exported(path: Path) -> Path:
    batch = torch.export.Dim("batch", min=1, max=1000)
    program = torch.export.export(network(), (images(4)[0],), dynamic_shapes=({0: batch},))
    torch.export.save(program, path)
    return path


@pytest.mark.parametrize("kind", ["script", "trace", "export"])
def test_a_program_is_judged_as_the_network_that_it_was_made_of(kind: str, tmp_path: Path) -> None:
    path = (
        exported(tmp_path / "net.pt2") if kind == "export" else scripted(tmp_path / "net.pt", kind)
    )
    assert runs_code(str(path)), "it is code: for somebody else's record in a process of its own"
    opened = open_model(str(path), **SHAPE)
    shown, labels = images()
    assert torch.allclose(opened.model(shown), network()(shown), atol=1e-5)
    wanted, found = (
        robust_nc.evaluate(model, shown, labels, BALL, protocol="pgd", tune=False)
        for model in (network(), opened.model)
    )
    assert found.robust.equal(wanted.robust)
    ran = cli(
        "evaluate",
        path,
        "--dataset",
        "digits",
        "--n",
        6,
        "--eps",
        0.1,
        "--protocol",
        "pgd",
        "--no-geometry",
        "--out",
        tmp_path / "out",
    )
    assert ran.code == 0, ran.err


def test_a_damaged_program_and_bare_weights_are_told_apart(tmp_path: Path) -> None:
    whole = scripted(tmp_path / "net.pt", "script").read_bytes()
    (tmp_path / "half.pt2").write_bytes(whole[:100])
    with pytest.raises(CheckpointError, match=r"half.pt2 cannot be read"):
        open_model(str(tmp_path / "half.pt2"), **SHAPE)
    torch.save(network().state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ConfigError, match="holds weights without their architecture"):
        open_model(str(tmp_path / "weights.pt"), **SHAPE)
    assert not runs_code(str(tmp_path / "weights.pt"))


def test_onnx_is_read_or_says_what_it_needs(tmp_path: Path) -> None:
    try:
        import onnx2torch  # noqa: F401
    except ImportError:
        (tmp_path / "net.onnx").write_bytes(b"x")
        with pytest.raises(ConfigError, match=r"pip install 'robust-nc\[onnx\]'"):
            open_model(str(tmp_path / "net.onnx"), **SHAPE)
        return
    torch.onnx.export(
        network(),
        images(2)[0],
        tmp_path / "net.onnx",
        dynamo=False,
        dynamic_axes={"input": {0: "n"}},
        input_names=["input"],
    )
    opened = open_model(str(tmp_path / "net.onnx"), **SHAPE)
    shown, labels = images()
    assert torch.allclose(opened.model(shown), network()(shown), atol=1e-5)
    outcome = robust_nc.evaluate(opened.model, shown, labels, BALL, protocol="pgd")
    assert len(outcome.robust) == 6


def test_weights_with_prefixes_and_entries_that_are_no_tensors(tmp_path: Path) -> None:
    for prefix in ("_orig_mod.", "module.", "module._orig_mod."):
        state = {f"{prefix}{name}": value for name, value in network().state_dict().items()}
        torch.save(
            {"state_dict": state | {"epoch": 3, "note": "x"}, "best": torch.ones(1)},
            tmp_path / "w.pt",
        )
        other = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)
        )
        assert fill(other, read_weights(tmp_path / "w.pt")) is None
        assert other[3].weight.equal(network()[3].weight)


class Block(nn.Module):
    """A block of a transformer as Hugging Face has them: it gives a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, None]:
        return tokens + self.second(self.first(tokens).relu()), None


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Block() for _ in range(3))
        self.unused = nn.Sequential(nn.Linear(16, 16), nn.Tanh())

    def forward(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        for block in self.layer:
            tokens, _ = block(tokens)
        return {"last_hidden_state": tokens}


class PreTrainedModel(nn.Module):
    """By its name what `transformers` has; its answer has `.logits`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.encoder = nn.Conv2d(1, 16, 4, stride=4), Encoder()
        self.classifier = nn.Linear(16, 10)

    def forward(self, pixels: torch.Tensor) -> SimpleNamespace:
        tokens = self.patches(pixels).flatten(2).transpose(1, 2)
        found = self.encoder(tokens)["last_hidden_state"]
        return SimpleNamespace(logits=self.classifier(found.mean(1)))


def test_a_classifier_of_hugging_face_is_judged_and_measured_block_by_block() -> None:
    model, (shown, labels) = PreTrainedModel().eval(), images(20)
    blocks = tuple(f"encoder.layer.{k}" for k in range(3))
    assert set(blocks) < set(module_taps(model))
    read = read_taps(model, shown)
    assert set(blocks) | {"patches", "penultimate"} == set(read.features), (
        "what did not run is left out"
    )
    assert read.features["encoder.layer.1"].shape == (20, 16)
    outcome = robust_nc.evaluate(model, shown, labels, BALL, protocol="fgsm")
    assert len(outcome.robust) == 20
    settings = robust_nc.MeasureConfig(steps=1, radii=(), targets=(), trajectories=0)
    found = robust_nc.profile(model, [(shown, labels)], BALL, measure=settings)
    assert set(blocks) < set(found.taps)


def test_the_real_ones_of_hugging_face() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=8,
        patch_size=4,
        num_channels=1,
        num_labels=10,
    )
    model, (shown, labels) = transformers.ViTForImageClassification(config).eval(), images(20)
    assert sum(".layer" in name for name in module_taps(model)) == 2
    outcome = robust_nc.evaluate(model, shown, labels, BALL, protocol="fgsm")
    assert len(outcome.robust) == 20


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_a_compiled_module_is_judged_and_measured_by_its_own_names() -> None:
    model, (shown, labels) = torch.compile(network(), backend="eager"), images(20)
    assert module_taps(model) == module_taps(network())
    outcome = robust_nc.evaluate(model, shown, labels, BALL, protocol="fgsm")
    assert outcome.robust.equal(
        robust_nc.evaluate(network(), shown, labels, BALL, protocol="fgsm").robust
    )


@pytest.mark.filterwarnings("ignore")  # of torch, about what it will do otherwise some day
def test_a_quantised_model_is_judged_by_what_needs_no_gradient() -> None:
    model = torch.ao.quantization.quantize_dynamic(network(), {nn.Linear})
    shown, labels = images(10)
    outcome = robust_nc.evaluate(model, shown, labels, BALL, protocol="fast")
    assert "no-gradient" in {warned.name for warned in outcome.warnings}
    assert len(outcome.robust) == 10
