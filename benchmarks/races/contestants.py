"""What races: a model by name with its images, labels and ball, and the evaluations that attack it.

Each evaluation, ours and others', runs in a process of its own: it loads the subject, evaluates it
once, and says how long that took, what the verdict was, how many passes it cost and how much memory
the process took. Theirs are judged by the images that they return, with the subject's own model;
their passes are counted by hooks, in runs that are not timed.

>>> subject = load("digits", examples=4)
>>> subject.images.shape, str(subject.ball)
(torch.Size([4, 1, 8, 8]), 'Linf 0.15')
>>> model = torch.nn.Linear(2, 3)
>>> with Meter(model) as meter:
...     model(torch.rand(4, 2)).sum().backward()
>>> meter.forwards, meter.backwards
(4, 4)
"""

import concurrent.futures
import functools
import importlib.util
import json
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nc.benchmarks.races.memory import peak_bytes
from robust_nc.benchmarks.races.timing import load_average, seconds_of, wait
from robust_nc.config import Component
from robust_nc.data.load import load_dataset
from robust_nc.evaluation import evaluate
from robust_nc.evaluation.acceleration import lowered
from robust_nc.exceptions import ConfigError, unknown_name
from robust_nc.io.files import sha256_of
from robust_nc.plugins import find_protocol
from robust_nc.runtime import default_device, generator, untouched
from robust_nc.runtime.environment import code_digest
from robust_nc.runtime.third_party import import_peer
from robust_nc.threat import Ball
from robust_nc.training.run import load_classifier

OURS, PASSES = "ours", "passes"
_STEPS = 100  # of APGD and FAB in AutoAttack
_BATCHES = {"cpu": (16, 32, 64, 128, 256), "cuda": (128, 256, 512, 1024, 2048)}
_CALLS = 3
_LONG = 4.0  # seconds; a batch whose pass would take longer is not tried


class Subject(NamedTuple):
    """A model in eval mode on the CPU, N examples, a ball, and where the weights come from."""

    model: nn.Module
    images: Tensor
    labels: Tensor
    ball: Ball
    about: str


def load(
    name: str, *, examples: int, path: Path | None = None, data: Path | None = None
) -> Subject:
    """Return a subject with the first `examples` of its test set.

    `digits`: a small network, fitted here, to try a race. `resnet18`: the model in pyautoattack's
    examples, on CIFAR-10. `checkpoint`: the folder `path` that a training of ours wrote, with its
    data set and ball. `a-adv`: the PGD-trained CNN of Dathathri et al. (2020), weights `path` and
    images `data`, for CIFAR-10 (2/255) or MNIST (0.3). Raises `ConfigError` for what is not there.
    """
    if name not in _SUBJECTS:
        raise unknown_name("model of a race", name, _SUBJECTS)
    return _SUBJECTS[name](examples, path, data)


def _digits(examples: int, path: Path | None, data: Path | None) -> Subject:
    images, labels = load_dataset("digits", split="train", limit=500)
    draws = generator(0, "race", "digits")
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=draws))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    tested = load_dataset("digits", split="test", limit=examples)
    optimizer.zero_grad()
    return Subject(model.eval(), *tested, Ball("Linf", 0.15), "a perceptron fitted to digits")


def _resnet18(examples: int, path: Path | None, data: Path | None) -> Subject:
    found = importlib.util.find_spec("pyautoattack")
    if found is None or found.origin is None:
        raise ConfigError("resnet18 comes with pyautoattack; install pyautoattack==0.2.0")
    folder = Path(found.origin).parent / "examples"
    weights = folder / "model_test.pt"
    model: nn.Module = _from_file(folder / "resnet.py").ResNet18()
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    tested = load_dataset("cifar10", split="test", limit=examples)
    return Subject(model.eval(), *tested, Ball("Linf", 8 / 255), _told(weights))


def _checkpoint(examples: int, path: Path | None, data: Path | None) -> Subject:
    folder = _given(path, "checkpoint needs --path, the folder that a training wrote")
    model = load_classifier(folder)
    config = json.loads((folder / "best.json").read_text())["config"]
    part, threat = config["data"]["dataset"], config["threat"]
    dataset = Component(name=part["name"], options=part["options"])
    tested = load_dataset(dataset, split="test", limit=examples)
    told = f"checkpoint {folder.name}, {config['train']['objective']['name']}, {part['name']}"
    return Subject(model, *tested, Ball(threat["norm"], threat["eps"]), told)


def _a_adv(examples: int, path: Path | None, data: Path | None) -> Subject:
    weights = _given(path, "a-adv needs --path, the weights of a CNN A-Adv as safetensors")
    pixels = _given(data, "a-adv needs --data, an .npz file with x_test (uint8, NCHW) and y_test")
    with np.load(pixels, allow_pickle=False) as arrays:
        images, labels = (
            torch.from_numpy(arrays[name][:examples]) for name in ("x_test", "y_test")
        )
    channels, side = images.shape[1], images.shape[-1] // 4
    network = nn.Sequential(
        nn.Conv2d(channels, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * side**2, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )
    network.load_state_dict(load_file(weights))
    model = nn.Sequential(*([_Normalise()] if channels > 1 else []), network)
    ball = Ball("Linf", 2 / 255 if channels > 1 else 0.3)
    return Subject(model.eval(), images.float() / 255, labels.long(), ball, _told(weights))


class _Normalise(nn.Module):
    """Mean and standard deviation of CIFAR-10, as the CNN A-Adv was trained with."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, values in (("mean", (125.3, 123.0, 113.9)), ("std", (63.0, 62.1, 66.7))):
            self.register_buffer(name, torch.tensor(values)[:, None, None] / 255)

    def forward(self, images: Tensor) -> Tensor:
        normalised: Tensor = (images - self.mean) / self.std
        return normalised


_SUBJECTS: dict[str, Callable[[int, Path | None, Path | None], Subject]] = {
    "a-adv": _a_adv,
    "checkpoint": _checkpoint,
    "digits": _digits,
    "resnet18": _resnet18,
}
NAMES = tuple(_SUBJECTS)


def _given(path: Path | None, message: str) -> Path:
    if path is None or not path.exists():
        raise ConfigError(message if path is None else f"{message}; {path} does not exist")
    return path


def _told(weights: Path) -> str:
    return f"{weights.name}, SHA-256 {sha256_of(weights)[:16]}"


def _from_file(path: Path) -> Any:
    """Import one file of a package without the package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Setup(NamedTuple):
    """What all runs of a race have in common. A batch size of None: what is fastest."""

    model: str
    examples: int
    path: str | None = None
    data: str | None = None
    threads: int | None = None
    batch_size: int | None = None
    batch_size_theirs: int = 250

    def subject(self) -> Subject:
        """Load the subject."""
        path, data = (Path(place) if place else None for place in (self.path, self.data))
        return load(self.model, examples=self.examples, path=path, data=data)


class Job(NamedTuple):
    """One run: `repeat` numbers the timed runs; one that is counted is None, and not timed."""

    contestant: str
    seed: int
    repeat: int | None

    def __str__(self) -> str:
        kind = "counted" if self.repeat is None else f"timed, round {self.repeat + 1}"
        return f"{self.contestant}, seed {self.seed}, {kind}"


class Verdict(NamedTuple):
    """What a contestant returns; passes are None where they were not counted."""

    clean: Tensor
    robust: Tensor
    forwards: int | None = None
    backwards: int | None = None
    outside: int = 0
    about: str = ""


Contestant = Callable[[Subject, Setup, int], Verdict | Tensor]  # images, for theirs


def in_a_child(setup: Setup, job: Job) -> dict[str, Any]:
    """Do a job in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(work, setup, job).result()


def work(setup: Setup, job: Job) -> dict[str, Any]:
    """Do a job here, and describe it as JSON."""
    if setup.threads:
        torch.set_num_threads(setup.threads)
    device = default_device()
    subject = setup.subject()
    subject.model.to(device)
    line: dict[str, Any] = job._asdict() | {"code": code_digest(), "load": load_average()}
    if job.contestant == PASSES:
        return line | time_passes(subject, device)
    with torch.no_grad():  # the first pass of a process is slow
        subject.model(subject.images[:8].to(device))
    prepare(job.contestant)
    before, contestant = peak_bytes(device), CONTESTANTS[job.contestant]
    with Meter(None if job.repeat is not None else subject.model) as meter:
        started = time.perf_counter()
        found = contestant(subject, setup, job.seed)
        wait()
        seconds = time.perf_counter() - started
    verdict = judged(subject, found) if isinstance(found, Tensor) else found
    if job.repeat is None and verdict.forwards is None:
        verdict = verdict._replace(forwards=meter.forwards, backwards=meter.backwards)
    return line | {
        "seconds": seconds if job.repeat is not None else None,
        "clean": written(verdict.clean),
        "robust": written(verdict.robust),
        "forwards": verdict.forwards,
        "backwards": verdict.backwards,
        "outside": verdict.outside,
        "about": verdict.about,
        "mebibytes": peak_bytes(device) / 2**20,
        "mebibytes_before": before / 2**20,
    }


def ours(subject: Subject, setup: Setup, seed: int, *, precision: str = "auto") -> Verdict:
    """`robust_nc.evaluate` with the protocol `standard`, which counts its passes itself."""
    outcome = evaluate(
        subject.model,
        subject.images,
        subject.labels,
        subject.ball,
        seed=seed,
        batch_size=setup.batch_size,
        precision=precision,
        second_opinion=False,
    )
    return Verdict(
        outcome.clean_correct,
        outcome.robust,
        int(outcome.forward_passes.sum()),
        int(outcome.backward_passes.sum()),
        about=", ".join(outcome.accelerated),
    )


class _Lowered(nn.Module):
    """A model whose passes run in bfloat16."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        with lowered("bf16", images.device):
            logits: Tensor = self.model(images).float()
        return logits


def pyautoattack(subject: Subject, setup: Setup, seed: int, *, lower: bool = False) -> Tensor:
    """pyautoattack's standard version, on the model or on its passes in bfloat16."""
    device = default_device()
    attack = import_peer("pyautoattack", "pyautoattack").AutoAttack(
        _Lowered(subject.model) if lower else subject.model,
        norm=subject.ball.norm,
        eps=subject.ball.eps,
        seed=seed,
        device=device,
    )
    images, labels = subject.images.to(device), subject.labels.to(device)
    found: Tensor
    found, _ = attack.run_standard_evaluation(images, labels, batch_size=setup.batch_size_theirs)
    return found


def torchattacks(subject: Subject, setup: Setup, seed: int, *, steps: int | None = None) -> Tensor:
    """torchattacks' AutoAttack as it comes, or with a number of steps set by hand."""
    device = default_device()
    with torch.no_grad():
        classes = subject.model(subject.images[:1].to(device)).shape[1]
    attack = import_peer("torchattacks", "torchattacks").AutoAttack(
        subject.model, norm=subject.ball.norm, eps=subject.ball.eps, n_classes=classes, seed=seed
    )
    attack.set_device(device)
    for part in attack._autoattack.attacks if steps else ():
        if hasattr(part, "steps"):
            part.steps = steps
    parts = zip(
        torch.split(subject.images, setup.batch_size_theirs),
        torch.split(subject.labels, setup.batch_size_theirs),
        strict=True,
    )
    found = [attack(images.to(device), labels.to(device)) for images, labels in parts]
    return torch.cat(found)


CONTESTANTS: dict[str, Contestant] = {
    OURS: ours,
    f"{OURS}-float32": functools.partial(ours, precision="float32"),
    "pyautoattack": pyautoattack,
    "pyautoattack-bf16": functools.partial(pyautoattack, lower=True),
    "torchattacks": torchattacks,
    "torchattacks-100": functools.partial(torchattacks, steps=_STEPS),
}


def prepare(contestant: str) -> None:
    """Import what a contestant needs; `ConfigError` says why it cannot race."""
    library, _, _ = contestant.partition("-")
    if library == OURS:
        find_protocol("standard")
    else:
        import_peer(library, library)


@torch.no_grad()
def judged(subject: Subject, found: Tensor) -> Verdict:
    """Ask the subject's own model about what an attack returned, not projected."""
    found = found.detach().cpu()

    def correct(images: Tensor) -> Tensor:
        parts = [part.to(default_device()) for part in torch.split(images, 250)]
        return torch.cat([subject.model(part).argmax(1).cpu() for part in parts]) == subject.labels

    clean = correct(subject.images)
    outside = int((~subject.ball.contains(found, subject.images)).sum())
    return Verdict(clean, clean & correct(found), outside=outside)


def time_passes(subject: Subject, device: torch.device) -> dict[str, Any]:
    """Seconds per example of a forward, and of a forward with input gradient, by batch size.

    Each is the least of three calls of the bare model, its parameters frozen. Batches that would
    take long are left out.
    """
    model = subject.model
    times: dict[str, dict[str, float]] = {"forward": {}, "gradient": {}}
    with untouched(model):
        for size in _BATCHES.get(device.type, _BATCHES["cpu"]):
            rows = torch.arange(size) % len(subject.images)
            images, labels = subject.images[rows].to(device), subject.labels[rows].to(device)
            for name, call in (("forward", _forward), ("gradient", _gradient)):
                if size * min(times[name].values(), default=0.0) > _LONG:
                    continue
                passed = functools.partial(call, model, images, labels)
                passed()
                least = min(seconds_of(passed) for _ in range(_CALLS))
                times[name][str(size)] = least / size
    return times


def _forward(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    with torch.no_grad():
        model(images)


def _gradient(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    leaf = images.detach().requires_grad_()
    torch.autograd.grad(nn.functional.cross_entropy(model(leaf), labels), leaf)


def written(flags: Tensor) -> str:
    """Write flags as a row of 0 and 1."""
    return "".join("1" if flag else "0" for flag in flags.tolist())


class Meter:
    """Counts the examples that pass forward and backward through a model, by hooks."""

    def __init__(self, model: nn.Module | None) -> None:
        self.model = model
        self.forwards = 0
        self.backwards = 0

    def __enter__(self) -> "Meter":
        self._handles = [self.model.register_forward_hook(self._forth)] if self.model else []
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _forth(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.forwards += len(output)
        if output.requires_grad:
            output.register_hook(self._back)  # type: ignore[no-untyped-call]

    def _back(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)
