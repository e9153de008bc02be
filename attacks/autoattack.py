"""AutoAttack's class on this engine: a script changes its import, and nothing else.

Signatures, names and printed lines are those of `autoattack` (fra31/auto-attack) and, where it
renamed them, of `pyautoattack` 0.2.0 (`attacks`, `batch_size`). The work is `robust_nc.evaluate`'s.

>>> import torch
>>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).eval()
>>> images, labels = torch.rand(6, 1, 4, 4), torch.tensor([0, 1, 2, 0, 1, 2])
>>> attack = AutoAttack(
...     model, norm="L2", eps=0.3, seed=0, verbose=False, version="custom",
...     attacks_to_run=["apgd-ce", "square"],
... )
>>> attack.square.n_queries = 20
>>> adversarial = attack.run_standard_evaluation(images, labels, bs=4)
>>> bool(((adversarial - images).flatten(1).norm(dim=1) <= 0.3 + 1e-6).all())
True
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robust_nc.attacks.apgd import APGD
from robust_nc.attacks.fab import FAB
from robust_nc.attacks.square import Square
from robust_nc.evaluation import Outcome, evaluate
from robust_nc.exceptions import ConfigError, InputError, unknown_name
from robust_nc.runtime import device_of, full_precision, private_draws, untouched
from robust_nc.runtime.progress import Progress
from robust_nc.threat import Ball
from robust_nc.types import Attack, EvaluationProtocol

_BATCH = 250
_SECONDS = 60.0  # between two lines of progress


class AutoAttack:
    """Evaluate a model with AutoAttack; the arguments are those of `autoattack.AutoAttack`.

    `model` maps images (N, C, H, W) in [0, 1] to logits; a function does too. `version` is
    "standard", "plus", "rand", or "custom" with the names of attacks in `attacks_to_run` (or
    `attacks`) and the parameters in `apgd`, `apgd_targeted`, `fab`, `square`, which may be set
    before a run. `seed` None takes the time. `device` is where a function wants its images; a
    module gets them where it is, and its device may be left out. Lines go to the terminal if
    `verbose`, and to the end of `log_path`; doubts about the verdict always do.

    Raises `ConfigError` for an unknown version, for attacks without "custom" and for TensorFlow,
    `InputError` for an eps or a device that cannot be used.
    """

    def __init__(
        self,
        model: nn.Module | Callable[[Tensor], Tensor],
        norm: str = "Linf",
        eps: float | int = 0.3,
        seed: int | None = None,
        verbose: bool = True,
        attacks_to_run: Sequence[str] = (),
        version: str = "standard",
        is_tf_model: bool = False,
        device: str | torch.device | None = None,
        log_path: str | Path | None = None,
        *,
        attacks: Sequence[str] | None = None,
    ) -> None:
        if is_tf_model:
            raise ConfigError(
                "TensorFlow models are not supported; hand in a torch module that returns logits"
            )
        chosen = list(attacks_to_run if attacks is None else attacks)
        if chosen and version != "custom":
            raise ConfigError(
                f"version {version!r} has attacks of its own; use version='custom' to run "
                f"{', '.join(map(str, chosen))}"
            )
        Ball(norm, eps)  # says what is wrong with them
        self.model = model
        self.norm = norm
        self.epsilon = eps
        self.seed = seed
        self.verbose = verbose
        self.log_path = log_path
        self.set_version(version)
        if chosen:
            self.attacks_to_run = chosen
        self._module = _as_module(model, device)
        self.device = device_of(self._module)
        self._both = attacks is not None  # as pyautoattack, which returns labels always

    def set_version(self, version: str = "standard") -> None:
        """Take the attacks and parameters of a published version."""
        self.version = version
        names, self.apgd, self.apgd_targeted, self.fab, self.square = _published(version, self.norm)
        self.attacks_to_run = list(names)

    def run_standard_evaluation(
        self,
        x_orig: Tensor,
        y_orig: Tensor,
        bs: int | None = None,
        return_labels: bool | None = None,
        state_path: str | Path | None = None,
        *,
        batch_size: int | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the images (N, C, H, W), those that were broken replaced by what broke them.

        Also the predicted labels (N,) if `return_labels` (None: as the package whose keywords are
        used does, so only with `attacks` or `batch_size`). `bs` or `batch_size` bounds the batches
        (None: what is fastest). `state_path` is the log of an interrupted evaluation, which goes
        on from there; it belongs to one model, images and parameters.
        """
        size = bs if batch_size is None else batch_size
        seed = self._seed(state_path)
        outcome = self._judged(self.attacks_to_run, x_orig, y_orig, size, seed, state_path)
        both = (self._both or batch_size is not None) if return_labels is None else return_labels
        return self._given_back(outcome, x_orig, y_orig, size, both)

    def run_standard_evaluation_individual(
        self,
        x_orig: Tensor,
        y_orig: Tensor,
        bs: int | None = None,
        return_labels: bool | None = None,
        *,
        batch_size: int | None = None,
    ) -> dict[str, Tensor] | dict[str, tuple[Tensor, Tensor]]:
        """Run each attack by itself on all images; return what each found, by its name."""
        size = bs if batch_size is None else batch_size
        both = (self._both or batch_size is not None) if return_labels is None else return_labels
        log, seed = _Log(self.verbose, self.log_path), self._seed(None)
        found = {}
        for name in self.attacks_to_run:
            started = time.monotonic()
            outcome = self._judged([name], x_orig, y_orig, size, seed, None, told=False)
            found[name] = self._given_back(outcome, x_orig, y_orig, size, both)
            log.line(
                f"robust accuracy by {name.upper():8} {outcome.robust_accuracy:.2%} "
                f"(time attack: {time.monotonic() - started:.1f} s)"
            )
        return found  # type: ignore[return-value]

    def clean_accuracy(
        self,
        x_orig: Tensor,
        y_orig: Tensor,
        bs: int | None = None,
        *,
        batch_size: int | None = None,
    ) -> float:
        """Share of images that the model classifies correctly."""
        predicted = self._predicted(x_orig, bs if batch_size is None else batch_size)
        accuracy = float((predicted == y_orig.cpu()).double().mean())
        if self.verbose:
            print(f"clean accuracy: {accuracy:.2%}")
        return accuracy

    def get_logits(self, x: Tensor) -> Tensor:
        """Return the model's logits `(N, K)`."""
        logits: Tensor = self._module(x)
        return logits

    def protocol(self) -> EvaluationProtocol:
        """Return the attacks as they are set now, for `robust_nc.evaluate`."""
        return self._plan(self.attacks_to_run)

    def _plan(self, names: Sequence[str]) -> EvaluationProtocol:
        settings = _Settings(tuple(names), self.apgd, self.apgd_targeted, self.fab, self.square)
        return EvaluationProtocol(self.version, settings.attacks(), draws=self.apgd.eot_iter)

    def _seed(self, state_path: str | Path | None) -> int:
        """Return the seed; where the time gives it, a log keeps it in a file at its side."""
        if self.seed is not None:
            return int(self.seed)
        drawn = time.time_ns() % 2**31
        if state_path is None:
            return drawn
        log, beside = Path(state_path), Path(f"{state_path}.seed")
        if log.is_file() and beside.is_file():
            return int(beside.read_text())
        beside.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(f"{drawn}\n")
        return drawn

    def _judged(
        self,
        names: Sequence[str],
        images: Tensor,
        labels: Tensor,
        size: int | None,
        seed: int,
        state_path: str | Path | None,
        *,
        told: bool = True,
    ) -> Outcome:
        teller = _Teller(
            _Log(self.verbose and told, self.log_path if told else None),
            count=len(images),
            resumed=state_path is not None and Path(state_path).exists(),
        )
        teller.log.line(f"using {self.version} version including {', '.join(names)}")
        outcome = evaluate(
            self._module,
            images,
            labels,
            Ball(self.norm, self.epsilon),
            protocol=self._plan(names),
            seed=seed,
            batch_size=size,
            second_opinion=False,  # the verdict is AutoAttack's
            log=state_path,
            report=teller.hear,
        )
        teller.end(outcome)
        for warned in outcome.warnings:
            _Log(True, self.log_path).line(f"Warning: {warned.message}")
        return outcome

    def _given_back(
        self, outcome: Outcome, images: Tensor, labels: Tensor, size: int | None, both: bool
    ) -> Tensor | tuple[Tensor, Tensor]:
        broken = (outcome.clean_correct & ~outcome.robust).to(images.device)
        found = images.detach().clone()
        found[broken] = outcome.adversarials.to(images)[broken]
        return (found, self._predicted(found, size).to(labels.device)) if both else found

    def _predicted(self, images: Tensor, size: int | None) -> Tensor:
        with (
            torch.no_grad(),
            untouched(self._module),
            full_precision(),
            private_draws(0, self.device),
        ):
            parts = [part.to(self.device) for part in torch.split(images, size or _BATCH)]
            return torch.cat([self.get_logits(part).argmax(1).cpu() for part in parts])


class _Log:
    """Lines for the terminal, where they are `shown`, and for the end of a file."""

    def __init__(self, shown: bool, path: str | Path | None) -> None:
        self.shown = shown
        self.path = path

    def line(self, text: str) -> None:
        if self.shown:
            print(text, flush=True)
        if self.path is not None:
            path = Path(self.path)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                file.write(f"{text}\n")


class _Teller:
    """Says what autoattack says, as soon as the progress of an evaluation shows it."""

    def __init__(self, log: _Log, *, count: int, resumed: bool) -> None:
        self.log = log
        self._count = max(count, 1)
        self._resumed = resumed
        self._opened = False
        self._ended = 0  # the last turn that was told to be over
        self._began = self._spoke = time.monotonic()

    def hear(self, progress: Progress) -> None:
        """Take note of a progress."""
        now = time.monotonic()
        if not (self._opened or self._resumed):  # all that are correct get the first attack
            self._open(progress.total / self._count)
        if progress.examples and progress.done == progress.total and progress.turn > self._ended:
            self._ended = progress.turn
            self.log.line(
                f"robust accuracy after {progress.attack.upper()}: "
                f"{progress.robust / self._count:.2%} (total time {now - self._began:.1f} s)"
            )
        elif now - self._spoke >= _SECONDS:
            self._spoke = now
            self.log.line(str(progress))

    def end(self, outcome: Outcome) -> None:
        """Say what is known at the end."""
        if not self._opened:
            self._open(outcome.clean_accuracy)
        self.log.line(f"robust accuracy: {outcome.robust_accuracy:.2%}")

    def _open(self, accuracy: float) -> None:
        self._opened = True
        self.log.line(f"initial accuracy: {accuracy:.2%}")


class _Called(nn.Module):
    """A function as a module, on a device."""

    place: Tensor

    def __init__(self, function: Callable[[Tensor], Tensor], device: str | torch.device) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("place", torch.zeros(0, device=device))

    def forward(self, images: Tensor) -> Tensor:
        """Call the function."""
        return self.function(images)


def _as_module(
    model: nn.Module | Callable[[Tensor], Tensor], device: str | torch.device | None
) -> nn.Module:
    """Return the model as a module; one that is not on the named device is refused."""
    owner = getattr(model, "__self__", None)
    if isinstance(owner, nn.Module) and model in (owner.forward, owner.__call__):
        model = owner
    if not isinstance(model, nn.Module):
        return _Called(model, device or "cpu").eval()
    here, wanted = device_of(model), torch.device(device or device_of(model))
    if wanted.type != here.type or wanted.index not in (None, here.index):
        raise InputError(
            f"the model is on {here} and device is {wanted}; move the model with "
            f".to({str(wanted)!r}), or leave device out"
        )
    return model


@dataclass
class ApgdSettings:
    """Parameters of APGD by their names in autoattack; `use_largereps` is for L1."""

    n_restarts: int = 5
    n_iter: int = 100
    eot_iter: int = 1
    rho: float = 0.75
    use_largereps: bool = False
    n_target_classes: int = 9

    def attack(self, loss: str, *, targeted: bool) -> APGD:
        """Return our attack with these parameters."""
        return APGD(
            steps=self.n_iter,
            restarts=self.n_restarts,
            loss=loss,
            rho=self.rho,
            eot=self.eot_iter,
            enlarged=self.use_largereps,
            num_targets=self.n_target_classes if targeted else None,
        )


@dataclass
class FabSettings:
    """Parameters of FAB by their names in autoattack; with targets there is one restart."""

    n_restarts: int = 5
    n_iter: int = 100
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    n_target_classes: int = 9

    def attack(self, *, targeted: bool) -> FAB:
        """Return our attack with these parameters."""
        return FAB(
            steps=self.n_iter,
            restarts=1 if targeted else self.n_restarts,
            alpha_max=self.alpha_max,
            eta=self.eta,
            beta=self.beta,
            num_targets=self.n_target_classes if targeted else None,
        )


@dataclass
class SquareSettings:
    """Parameters of Square by their names in autoattack."""

    n_restarts: int = 1
    n_queries: int = 5000
    p_init: float = 0.8
    resc_schedule: bool = False

    def attack(self) -> Square:
        """Return our attack with these parameters."""
        return Square(
            queries=self.n_queries,
            restarts=self.n_restarts,
            p_init=self.p_init,
            rescale_schedule=self.resc_schedule,
        )


class _Settings(NamedTuple):
    """The attacks to run, by name, and the parameters of all of them."""

    attacks_to_run: tuple[str, ...]
    apgd: ApgdSettings
    apgd_targeted: ApgdSettings
    fab: FabSettings
    square: SquareSettings

    def attacks(self) -> tuple[tuple[str, Attack], ...]:
        """Return our attacks under their names; unknown names are answered with the nearest."""
        for name in self.attacks_to_run:
            if name not in _MAKERS:
                raise unknown_name("attack of AutoAttack", name, _MAKERS)
        return tuple((name, _MAKERS[name](self)) for name in self.attacks_to_run)


_MAKERS: dict[str, Callable[[_Settings], Attack]] = {
    "apgd-ce": lambda settings: settings.apgd.attack("ce", targeted=False),
    "apgd-dlr": lambda settings: settings.apgd.attack("dlr", targeted=False),
    "apgd-t": lambda settings: settings.apgd_targeted.attack("dlr", targeted=True),
    "fab": lambda settings: settings.fab.attack(targeted=False),
    "fab-t": lambda settings: settings.fab.attack(targeted=True),
    "square": lambda settings: settings.square.attack(),
}


def _published(version: str, norm: str) -> _Settings:
    """Return what a version of AutoAttack stands for; "custom" has no attacks yet.

    >>> [name for name, attack in _published("rand", "L2").attacks()]
    ['apgd-ce', 'apgd-dlr']
    """
    settings = _Settings(
        (), ApgdSettings(), ApgdSettings(n_restarts=1), FabSettings(), SquareSettings()
    )
    if version not in _VERSIONS:
        raise unknown_name("version of AutoAttack", version, _VERSIONS)
    settings = settings._replace(attacks_to_run=_VERSIONS[version])
    if version == "rand":
        return settings._replace(apgd=ApgdSettings(n_restarts=1, eot_iter=20))
    if version != "standard":
        return settings
    if norm == "L1":
        few = ApgdSettings(n_restarts=1, n_target_classes=5, use_largereps=True)
        return settings._replace(apgd=ApgdSettings(use_largereps=True), apgd_targeted=few)
    return settings._replace(apgd=ApgdSettings(n_restarts=1))


_VERSIONS = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
    "custom": (),
}
