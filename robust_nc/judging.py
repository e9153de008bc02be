"""The judge of one block of examples: runs attacks, trusts none, keeps the worst point it saw.

>>> import torch
>>> from robust_nc.threat import Ball
>>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3)).eval()
>>> judge = Judge(model, Ball("Linf", 0.1), EvaluationProtocol("clean", ()), seed=0)
>>> images, labels = torch.rand(2, 1, 2, 2), torch.tensor([0, 1])
>>> judge.block(images, labels, torch.arange(2)).forwards.tolist()
[1, 1]
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from robust_nc.exceptions import InputError
from robust_nc.threat import Ball
from robust_nc.types import Attack, Attacked, CountedAttack, EvaluationProtocol, Warned

UNBROKEN, WRONG = -1, -2  # in `Block.broken_by`, beside indices into the protocol's attacks


class Block(NamedTuple):
    """The verdict on a block of n examples, `(n,)` each and points `(n, C, H, W)`."""

    clean_correct: Tensor
    robust: Tensor
    broken_by: Tensor
    points: Tensor
    margins: Tensor
    forwards: Tensor
    backwards: Tensor


class Judge:
    """Judges blocks of examples of one model under one protocol; collects warnings by name."""

    def __init__(
        self, model: nn.Module, ball: Ball, plan: EvaluationProtocol, *, seed: int
    ) -> None:
        self.model = model
        self.ball = ball
        self.plan = plan
        self.seed = seed
        self.warnings: dict[str, Warned] = {}

    def block(self, images: Tensor, labels: Tensor, ids: Tensor) -> Block:
        """Run every attack of the protocol over the examples that still stand."""
        logits = checked_logits(self.model, images, labels)
        correct = logits.argmax(1) == labels
        block = Block(
            clean_correct=correct,
            robust=correct.clone(),
            broken_by=torch.where(correct, UNBROKEN, WRONG),
            points=images.clone(),
            margins=margins(logits, labels),
            forwards=torch.ones_like(labels),
            backwards=torch.zeros_like(labels),
        )
        for index in range(len(self.plan.attacks)):
            standing = block.robust.nonzero().flatten()
            if not len(standing):
                break
            self._turn(index, standing, images[standing], labels[standing], ids[standing], block)
        return Block(*(tensor.cpu() for tensor in block))

    def _turn(
        self,
        index: int,
        standing: Tensor,
        origin: Tensor,
        labels: Tensor,
        ids: Tensor,
        block: Block,
    ) -> None:
        """Run one attack, re-project, re-score, and note flips, worst points and passes."""
        name, attack = self.plan.attacks[index]
        found = self._run(name, attack, origin, labels, ids)
        points = self._trusted(name, found.points, origin)
        logits = checked_logits(self.model, points, labels)
        scored = margins(logits, labels)
        flipped, worse = logits.argmax(1) != labels, scored > block.margins[standing]
        block.robust[standing[flipped]] = False
        block.broken_by[standing[flipped]] = index
        block.points[standing[worse]] = points[worse]
        block.margins[standing[worse]] = scored[worse]
        block.forwards[standing] += found.forwards.to(block.forwards) + 1
        block.backwards[standing] += found.backwards.to(block.backwards)

    def _run(
        self, name: str, attack: Attack, images: Tensor, labels: Tensor, ids: Tensor
    ) -> Attacked:
        """Run an attack; passes of one that does not count are shared equally by its examples."""
        # An attack gets copies: what it writes into them must not reach the verdict.
        given = (self.model, images.clone(), labels.clone(), self.ball)
        weights = [parameter._version for parameter in self.model.parameters()]
        if isinstance(attack, CountedAttack):
            found = attack.run(*given, seed=self.seed, ids=ids.clone())
        else:
            with _Meter(self.model) as meter:
                points = attack(*given, seed=self.seed, ids=ids.clone())
            forwards, backwards = (
                torch.full_like(labels, round(passes / len(images)))
                for passes in (meter.forwards, meter.backwards)
            )
            found = Attacked(points, forwards, backwards)
        if weights != [parameter._version for parameter in self.model.parameters()]:
            raise InputError(
                f"attack {name!r} changed the weights of the model; no verdict is left"
            )
        if not isinstance(found.points, Tensor) or found.points.shape != images.shape:
            shape = getattr(found.points, "shape", type(found.points).__name__)
            raise InputError(
                f"attack {name!r} returned {shape}; it must return images of shape {images.shape}"
            )
        return found

    def _trusted(self, name: str, points: Tensor, origin: Tensor) -> Tensor:
        """Bring what an attack returned into the ball; say so if it had left it."""
        points = points.detach().to(origin)
        finite = points.isfinite().flatten(1).all(1)
        points = torch.where(finite[:, None, None, None], points, origin)
        if not bool((self.ball.contains(points, origin) & finite).all()):
            message = f"attack {name!r} left the ball or the bounds; its points were projected back"
            self.warnings[f"left-ball:{name}"] = Warned(f"left-ball:{name}", message)
        return self.ball.project(points, origin)


@torch.no_grad()
def checked_logits(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return float32 logits `(n, K)`, or raise `InputError` that says what the model returned."""
    logits = model(images)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
        found = getattr(logits, "shape", type(logits).__name__)
        raise InputError(f"the model must return logits (N, K) for images (N, ...), found {found}")
    if logits.shape[1] < 2:
        raise InputError("the model must have at least two classes, found logits of one column")
    if len(labels) and int(labels.max()) >= logits.shape[1]:
        raise InputError(
            f"label {int(labels.max())} is out of range: the model has {logits.shape[1]} classes"
        )
    if not bool(logits.isfinite().all()):
        raise InputError("the model returned logits that are not finite; a verdict needs numbers")
    return logits.float()


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the largest other logit minus that of the label: above 0 is misclassified."""
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], float("-inf")).amax(1)
    return others - own[:, 0]


class _Meter:
    """Counts the examples that pass forward and backward through a model, by hooks."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.forwards = 0
        self.backwards = 0

    def __enter__(self) -> "_Meter":
        self._handle = self.model.register_forward_hook(self._seen)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _seen(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.forwards += len(output)
        if output.requires_grad:
            output.register_hook(self._back)  # type: ignore[no-untyped-call]

    def _back(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)
