"""How one model is measured, on which examples, and what was done to them.

>>> images, labels = torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 0])
>>> Examples("test", images, labels, torch.arange(3)).part(slice(1, 3)).ids.tolist()
[1, 2]
"""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from robust_nc.config import Component, MeasureConfig, build
from robust_nc.exceptions import ConfigError
from robust_nc.geometry.moments import Moments
from robust_nc.geometry.severity import check_distances
from robust_nc.io.user_code import allow, is_allowed
from robust_nc.models.classifier import Classifier
from robust_nc.profiling.feature_cache import all_taps, chosen_taps
from robust_nc.registry import ATTACKS, CONTROLS
from robust_nc.runtime.torch_state import generator, stream_key
from robust_nc.threat import Ball
from robust_nc.types import Attack, CountedAttack, RemoteModel

CLEAN, ATTACKED, SWEEP = "clean", "attacked", "sweep"  # conditions; the others by their kind

_SIZES = ("steps", "restarts", "scale")  # options of the attack, where none is named

VertexMoments = dict[str, Moments]  # by tap: moments of the clean training features by true label


class Attacking(NamedTuple):
    """The geometry attack: PGD on CE of logits divided by `scale`, and on the margin; or `attack`.

    `allowed`: the user named its code, which may then run in other processes too.
    """

    steps: int
    restarts: int
    scale: float
    attack: Component | None = None
    allowed: bool = False

    def build(self, distances: Tensor | None = None) -> Attack:
        """Make it; with `distances` (K, K), the one that tries target after target with it."""
        sizes: dict[str, Any] = {name: getattr(self, name) for name in _SIZES}
        if self.attack is None:
            inner = cast(Attack, build(ATTACKS, Component(name="geometry", options=sizes)))
        else:
            if self.allowed:
                allow(self.attack.name)
            inner = cast(Attack, build(ATTACKS, self.attack))
        if distances is None:
            return inner
        if not isinstance(inner, CountedAttack):
            raise ConfigError(
                "measure.targets: 'severest' needs an attack that counts its passes, as "
                f"robust_nc.types.CountedAttack says, and {type(inner).__name__} does not"
            )
        table = tuple(tuple(row) for row in distances.tolist())
        other = {"attack": inner} if self.attack is not None else sizes
        return cast(Attack, CONTROLS.load("severest")(distances=table, **other))

    @property
    def forwards(self) -> int:
        """Passes forward that an example costs: two losses, and a look at what each found."""
        return 2 * self.restarts * (self.steps + 1) + 2

    @property
    def backwards(self) -> int:
        """Passes backward that an example costs."""
        return 2 * self.restarts * self.steps

    def __str__(self) -> str:
        if self.attack is not None:
            options = ", ".join(f"{key}={value}" for key, value in self.attack.options.items())
            return f"{self.attack.name}{f' ({options})' if options else ''}"
        return f"pgd ce/{self.scale:.3g} and margin, {self.steps} steps, {self.restarts} restarts"


class Measurement(NamedTuple):
    """How a model is measured, without the model.

    `taps` in depth order, `depths` their places among all taps of the model, `distances` (K, K)
    between classes or None.
    """

    taps: tuple[str, ...]
    depths: dict[str, int]
    num_classes: int
    ball: Ball
    attacking: Attacking
    settings: MeasureConfig
    seed: int
    distances: Tensor | None

    @classmethod
    def of(
        cls,
        model: nn.Module,
        settings: MeasureConfig,
        ball: Ball,
        *,
        num_classes: int,
        scale: float,
        seed: int = 0,
        distances: Tensor | None = None,
    ) -> "Measurement":
        """Measure a model as the settings say; the attack divides its logits by `scale`."""
        taps, known = chosen_taps(model, settings.taps), all_taps(model)
        places = known if set(taps) <= set(known) else taps
        return cls(
            taps=taps,
            depths={tap: places.index(tap) for tap in taps},
            num_classes=num_classes,
            ball=ball,
            attacking=Attacking(
                steps=settings.steps,
                restarts=settings.restarts,
                scale=scale,
                attack=settings.attack,
                allowed=settings.attack is not None and is_allowed(settings.attack.name),
            ),
            settings=settings,
            seed=seed,
            distances=None if distances is None else check_distances(distances, num_classes),
        )

    @property
    def features(self) -> tuple[str, ...]:
        """How the outputs of layers become rows."""
        feature = self.settings.feature
        return ("gap", "flatten") if feature == "both" else (feature,)


def head_rows(
    model: nn.Module, measurement: Measurement, tap: str, shape: tuple[int, int]
) -> tuple[Tensor | None, Tensor | None]:
    """Return the rows of the last map and its fixed frame, `(K, D)`, None where there are none.

    There are none at a tap in whose features rows of that shape do not live.
    """
    if tap != measurement.taps[-1] or tap != all_taps(model)[-1]:
        return None, None
    if isinstance(model, Classifier):
        frame = model.head.frame()
        return model.head.vertices().detach(), None if frame is None else frame.detach()
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    weight: Tensor | None = layers[-1].weight.detach() if layers else None
    if isinstance(model, RemoteModel):
        weight = model.head_weight
    return None if weight is None or weight.shape != shape else weight, None


class Examples(NamedTuple):
    """Images `(N, C, H, W)` float32, labels and ids `(N,)` of one split, on the CPU.

    `given` (N,): the labels that training saw, where some were wrong; attacks aim away from those,
    since a network that has fitted a wrong label is not moved by an attack on the right one.
    """

    split: str
    images: Tensor
    labels: Tensor
    ids: Tensor
    given: Tensor | None = None

    @property
    def attacked_labels(self) -> Tensor:
        """Labels `(N,)` that attacks aim away from."""
        return self.labels if self.given is None else self.given

    def first(self, limit: int) -> "Examples":
        """Take the first examples."""
        return self.part(slice(0, limit))

    def part(self, rows: slice) -> "Examples":
        """Take some examples, as copies: a view would be pickled with all that it is a view of."""
        start, stop, _ = rows.indices(len(self.labels))
        if (start, stop) == (0, len(self.labels)):
            return self
        images, labels, ids = (part[rows].clone() for part in (self.images, self.labels, self.ids))
        given = None if self.given is None else self.given[rows].clone()
        return Examples(self.split, images, labels, ids, given)

    def key(self, seed: int) -> int:
        """Return the seed of all draws on this split."""
        return stream_key(seed, "geometry", self.split)


class ConditionImages(NamedTuple):
    """What was done to the images: `(N, C, H, W)`, with the targets `(N,)` of a targeted attack.

    Clean ones are those of the examples, and `images` None. `noisy` are the images with noise on
    top of the attack, or None. `gradients`: how many by an image the attack took, and in how many
    of them some entry was NaN or infinite.
    """

    name: str
    images: Tensor | None = None
    targets: Tensor | None = None
    noisy: Tensor | None = None
    gradients: tuple[int, int] = (0, 0)


def drawn(split: str, images: list[Tensor], labels: list[Tensor]) -> Examples:
    """Join batches, in an order of chance (data come by class, often); ids are the places given.

    So the first examples, where not all are taken, are a sample of all.
    """
    joined = torch.cat(labels)
    order = torch.randperm(len(joined), generator=generator(0, "profile-order", split))
    return Examples(split, torch.cat(images)[order], joined[order], order)
