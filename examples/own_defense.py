"""Train with a defense of your own, and hold it against standard training.

    python examples/own_defense.py

A defense is a class that turns a batch into a loss; `docs/adding_a_defense.md` says what else it
may do. This one moves each image by noise from the ball. Takes seconds.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

import robust_nc
from robust_nc.training.losses import FeatureLoss, PerExampleLoss
from robust_nc.training.objectives import BestBy, correct, logged, outer
from robust_nc.types import Loss


@dataclass(frozen=True)
class NoisyImages:
    """The mean loss on images moved by `share` of the ball's radius, at random."""

    ball: robust_nc.Ball
    loss: PerExampleLoss | FeatureLoss
    share: float = 1.0
    best_by: ClassVar[BestBy] = "validation_clean"
    in_parts: ClassVar[bool] = True

    def __call__(
        self, model: nn.Module, images: Tensor, labels: Tensor, *, seed: int, ids: Tensor
    ) -> Loss:
        """Return the loss of a batch `(n, c, h, w)`, whose draws depend on `seed` and `ids`."""
        moved = self.ball.sample(images, seed=seed, ids=ids, stream="noisy-images")
        found = outer(model, images + self.share * (moved - images), labels, self.loss)
        return logged(found.losses.mean(), {"noisy_correct": correct(found.logits, labels)})


if __name__ == "__main__":
    images, labels = robust_nc.load_dataset("digits", split="test", limit=100)
    for objective in ("standard", {"name": NoisyImages, "share": 1.0}):
        config = robust_nc.RunConfig(
            data={"dataset": "digits", "train_limit": 600},
            train={"objective": objective, "epochs": 5},
            threat={"norm": "Linf", "eps": 0.1},
        )
        model = robust_nc.train(config).cpu()
        outcome = robust_nc.evaluate(model, images, labels, config.threat.ball(), protocol="fast")
        print(config.train.objective.name)
        print(outcome)
