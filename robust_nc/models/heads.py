"""Heads: features `(N, D)` to logits `(N, K)`. What they share, those that are learnt, those
whose frame is fixed, and one whose frame follows the features.

>>> import torch
>>> head = LinearHead(3, 8, seed=0)
>>> head(torch.ones(1, 8)).shape, head.vertices().shape
(torch.Size([1, 3]), torch.Size([3, 8]))
>>> len(list(EtfHead(3, 8, seed=0).parameters()))
0
"""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nc.data.hierarchy.tree import hierarchy_names, read_hierarchy
from robust_nc.exceptions import InputError
from robust_nc.models.frames import haframe, nearest_etf, orthogonal_frame, simplex_etf
from robust_nc.runtime.torch_state import generator
from robust_nc.types import Features, Labels, Logits, Vertices

_SMALLEST_SQUARE = 1e-12
_SCALE_OF_COSINES = 16.0


class Head(nn.Module):
    """Base of all heads: logits = g(features) vertices()^T + bias_vector().

    g is the identity, or features / |features| with `normalise_features`. `temperature` divides
    the logits; it is part of `vertices()` and of `bias_vector()`, so that the line above is exact.
    A subclass sets those two, and `frame()` where its vertices are fixed. Logits are computed in
    the precision of the head, also under autocast, and each row from its own features only. A head
    with `observes` learns from features: training shows it every batch, without a gradient unless
    `gradient` says that it is for one.
    """

    observes: ClassVar[bool] = False
    gradient: bool = False

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        normalise_features: bool = False,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise InputError(f"a classifier needs at least 2 classes, found {num_classes}")
        if dim < 1:
            raise InputError(f"a head needs features of at least 1 dimension, found {dim}")
        if not 0 < temperature < float("inf"):
            raise InputError(f"temperature must be finite and above 0, found {temperature}")
        self.num_classes = num_classes
        self.dim = dim
        self.normalise_features = normalise_features
        self.temperature = temperature

    def vertices(self) -> Vertices:
        """Rows of the map that is applied, `(K, D)`: one direction per class."""
        raise NotImplementedError

    def bias_vector(self) -> Tensor | None:
        """Shift of the logits, `(K,)`, or None."""
        return None

    def frame(self) -> Vertices | None:
        """Return the fixed target frame, unit rows `(K, D)`; None where vertices are learnt."""
        return None

    def observe(self, features: Features, labels: Labels) -> None:
        """Learn from the features of a training batch; called once per step, before its logits."""

    def forward(self, features: Features) -> Logits:
        """Return logits."""
        vertices = self.vertices()
        with torch.autocast(features.device.type, enabled=False):
            inputs = features.to(vertices.dtype)
            if self.normalise_features:
                inputs = unit_rows(inputs)
            return F.linear(inputs, vertices, self.bias_vector())

    def extra_repr(self) -> str:
        """Show the sizes when the module is printed."""
        return f"{self.dim} -> {self.num_classes}"


class LinearHead(Head):
    """Learnable weight `(K, D)` and bias, drawn uniformly from +-1/sqrt(D).

    logits = (scale * g(features) w^T + bias) / temperature. With `normalise_weight` the rows w are
    those of the weight at unit length. `scale` None stands for 1, and for 16 where features and
    rows are both of unit length: cosines in [-1, 1] alone would leave a cross-entropy of 1.4 on a
    perfectly classified example of 10 classes. A `temperature` below 1 enlarges the logits further.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        seed: int,
        normalise_features: bool = False,
        temperature: float = 1.0,
        bias: bool = True,
        normalise_weight: bool = False,
        scale: float | None = None,
    ) -> None:
        super().__init__(
            num_classes, dim, normalise_features=normalise_features, temperature=temperature
        )
        self.normalise_weight = normalise_weight
        self.scale = choose_scale(scale, cosines=normalise_features and normalise_weight)
        source = generator(seed, "init-head")
        bound = dim**-0.5
        self.weight = nn.Parameter(_uniform((num_classes, dim), bound, source))
        self.bias = nn.Parameter(_uniform((num_classes,), bound, source)) if bias else None

    def vertices(self) -> Vertices:
        """Weight, or its rows at unit length, times scale over temperature."""
        rows = unit_rows(self.weight) if self.normalise_weight else self.weight
        return rows * (self.scale / self.temperature)

    def bias_vector(self) -> Tensor | None:
        """Bias over temperature."""
        return None if self.bias is None else self.bias / self.temperature


class PrototypeHead(Head):
    """Learnable prototypes mu `(K, D)`, drawn uniformly from +-1/sqrt(D).

    logits = -|g(features) - mu|^2 / temperature. They equal g(features) vertices()^T +
    bias_vector(), with vertices 2 mu / temperature and bias -|mu|^2 / temperature, up to
    -|g(features)|^2 / temperature: one number per example, which no softmax and no margin sees.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        seed: int,
        normalise_features: bool = False,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(
            num_classes, dim, normalise_features=normalise_features, temperature=temperature
        )
        draws = _uniform((num_classes, dim), dim**-0.5, generator(seed, "init-head"))
        self.prototypes = nn.Parameter(draws)

    def vertices(self) -> Vertices:
        """Twice the prototypes over temperature."""
        return self.prototypes * (2 / self.temperature)

    def bias_vector(self) -> Tensor:
        """Minus the squared lengths of the prototypes over temperature."""
        return -self.prototypes.square().sum(1) / self.temperature

    def forward(self, features: Features) -> Logits:
        """Return logits, at most 0 up to rounding."""
        with torch.autocast(features.device.type, enabled=False):
            inputs = features.to(self.prototypes.dtype)
            if self.normalise_features:
                inputs = unit_rows(inputs)
            # Seen from the prototypes' middle: what all of them share would drown the difference.
            middle = self.prototypes.detach().mean(0)
            inputs, rows = inputs - middle, self.prototypes - middle
            lengths = inputs.square().sum(1, keepdim=True) + rows.square().sum(1)
            return (2 * F.linear(inputs, rows) - lengths) / self.temperature


def choose_scale(scale: float | None, *, cosines: bool) -> float:
    """Return a factor of the logits, by default 16 for cosines and 1 for anything else."""
    if scale is None:
        return _SCALE_OF_COSINES if cosines else 1.0
    if not 0 < scale < float("inf"):
        raise InputError(f"scale must be finite and above 0, found {scale}")
    return scale


def unit_rows(rows: Features) -> Features:
    """Divide each row by its length; a row of zeros stays zero, with a finite gradient."""
    return rows * (rows.square().sum(1, keepdim=True) + _SMALLEST_SQUARE).rsqrt()


def _uniform(shape: tuple[int, ...], bound: float, source: torch.Generator) -> Tensor:
    return (torch.rand(shape, generator=source) * 2 - 1) * bound


class FixedHead(Head):
    """Base of heads with a fixed frame `(K, D)` of unit rows, no bias, nothing learnt.

    The frame is a buffer. logits = scale / temperature * g(features) frame^T. `scale` None stands
    for 1 with plain features, whose length the backbone learns, and for 16 with
    `normalise_features`: cosines in [-1, 1] alone would leave a cross-entropy of 1.4 on a perfectly
    classified example of 10 classes.
    """

    fixed_frame: Tensor

    def __init__(
        self,
        frame: Vertices,
        *,
        normalise_features: bool = False,
        temperature: float = 1.0,
        scale: float | None = None,
    ) -> None:
        num_classes, dim = frame.shape
        super().__init__(
            num_classes, dim, normalise_features=normalise_features, temperature=temperature
        )
        self.scale = choose_scale(scale, cosines=normalise_features)
        self.register_buffer("fixed_frame", frame)

    def vertices(self) -> Vertices:
        """Frame times scale over temperature."""
        return self.fixed_frame * (self.scale / self.temperature)

    def frame(self) -> Vertices:
        """Return the frame itself, unit rows."""
        return self.fixed_frame


class _DrawnHead(FixedHead):
    """A fixed frame that `draw` makes of sizes and seed."""

    draw: Callable[..., Vertices]

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        seed: int,
        normalise_features: bool = False,
        temperature: float = 1.0,
        scale: float | None = None,
    ) -> None:
        super().__init__(
            type(self).draw(num_classes, dim, seed=seed),
            normalise_features=normalise_features,
            temperature=temperature,
            scale=scale,
        )


class EtfHead(_DrawnHead):
    """Fixed simplex ETF, drawn uniformly among all orientations (Yang et al., NeurIPS 2022)."""

    draw = staticmethod(simplex_etf)


class OrthogonalHead(_DrawnHead):
    """Fixed orthonormal rows, drawn uniformly; needs at least K dimensions."""

    draw = staticmethod(orthogonal_frame)


class HaFrameHead(FixedHead):
    """Fixed hierarchy-aware frame (Liang and Davis, arXiv 2303.05689).

    `hierarchy` is the tree of the classes: one of the package's names, or a path to a TOML or JSON
    file; a suite's cells take that of their data where it is left out. Cosines fall with the
    distance in it, the faster the larger `gamma`. Raises `InputError` without a tree, and for one
    of another number of classes.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        seed: int,
        hierarchy: str | None = None,
        gamma: float = 2.0,
        normalise_features: bool = False,
        temperature: float = 1.0,
        scale: float | None = None,
    ) -> None:
        if hierarchy is None:
            raise InputError(
                "a hierarchy-aware head needs the tree of its classes; give it the option "
                f"`hierarchy`, one of {', '.join(hierarchy_names())} or a path"
            )
        tree = read_hierarchy(hierarchy)
        tree.check_classes(num_classes)
        super().__init__(
            haframe(tree.distances(), dim, gamma=gamma, seed=seed),
            normalise_features=normalise_features,
            temperature=temperature,
            scale=scale,
        )


class NearestEtfHead(Head):
    """Simplex ETF W nearest to the class means of the features (Markou et al., NeurIPS 2024).

    logits = tau / temperature * (features / |features| - mu_G) W^T, with mu_G the unweighted mean
    of the stored class means. Features are always brought to unit length, as in the paper, whatever
    the configuration's `normalise_features`. No parameter: `observe` moves W, and nothing else
    does, so that logits depend on their own features and the stored state only.

    The stored class means of unit features are exponential averages over batches, `momentum` the
    share of history. Classes missing from a batch keep theirs; before a class is first seen its row
    of the initial, random ETF stands for it. `delta` draws W to the one before it (`nearest_etf`),
    which settles the directions that the means leave open. With `gradient` that of the logits flows
    through how W was found from the batch, as in the paper. The pull is on W, not on the whole of
    the orthonormal P behind it, one direction of which W does not see.

    >>> head = NearestEtfHead(3, 8, seed=0)
    >>> features, labels = torch.eye(3, 8), torch.arange(3)
    >>> for _ in range(200):
    ...     head.observe(features, labels)
    >>> [round(value, 3) for value in (head.frame() @ features[0]).tolist()]
    [0.816, -0.408, -0.408]
    """

    observes: ClassVar[bool] = True
    etf: Tensor
    class_means: Tensor
    seen: Tensor

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        seed: int,
        temperature: float = 1.0,
        tau: float = 5.0,
        momentum: float = 0.9,
        delta: float = 1e-3,
        gradient: bool = False,
    ) -> None:
        super().__init__(num_classes, dim, normalise_features=True, temperature=temperature)
        if not 0 < tau < float("inf"):
            raise InputError(f"tau must be finite and above 0, found {tau}")
        if not 0 <= momentum < 1:
            raise InputError(f"momentum must be at least 0 and below 1, found {momentum}")
        if not 0 <= delta < float("inf"):
            raise InputError(f"delta must be finite and at least 0, found {delta}")
        self.tau = tau
        self.momentum = momentum
        self.delta = delta
        self.gradient = gradient
        self._moving: tuple[Tensor, Tensor] | None = None  # W and means that hold a gradient
        initial = simplex_etf(num_classes, dim, seed=seed)
        self.register_buffer("etf", initial)
        self.register_buffer("class_means", initial.clone())
        self.register_buffer("seen", torch.zeros(num_classes, dtype=torch.bool))

    def vertices(self) -> Vertices:
        """W times tau over temperature."""
        etf = self.etf if self._moving is None else self._moving[0]
        return etf * (self.tau / self.temperature)

    def bias_vector(self) -> Tensor:
        """Minus what the vertices make of the stored mean."""
        means = self.class_means if self._moving is None else self._moving[1]
        return -(self.vertices() * means.mean(0)).sum(1)

    def forward(self, features: Features) -> Logits:
        """Return logits; the first ones after `observe` hold its gradient, if there is one."""
        logits = super().forward(features)
        self._moving = None
        return logits

    def frame(self) -> Vertices:
        """Return a copy of W, unit rows, as it is now."""
        return self.etf.clone()

    def observe(self, features: Features, labels: Labels) -> None:
        """Bring the stored class means and W up to a batch; the same in train and eval mode.

        Features that are not finite change nothing: they show in the loss. An empty batch, too.
        """
        moving = self.gradient and torch.is_grad_enabled() and features.requires_grad
        with torch.set_grad_enabled(moving):
            self._observe(features, labels, moving=moving)

    def _observe(self, features: Features, labels: Labels, *, moving: bool) -> None:
        self._moving, device = None, self.etf.device
        rows = unit_rows(features.to(device, torch.float64))
        if not len(rows) or not bool(torch.isfinite(rows).all()):
            return
        # A product instead of a scattered sum, whose order on an accelerator is left to chance.
        classes = torch.arange(self.num_classes, device=device)[:, None]
        members = (labels.to(device) == classes).double()
        counts = members.sum(1, keepdim=True)
        present = counts > 0
        old = self.class_means.double()
        history = self.momentum * self.seen.double()[:, None]
        mixed = history * old + (1 - history) * (members @ rows) / counts.clamp_min(1)
        means = torch.where(present, mixed, old)
        etf = nearest_etf(means, toward=self.etf, delta=self.delta, gradient=moving)
        if moving:
            self._moving = etf.to(self.etf.dtype), means.to(self.etf.dtype)
        with torch.no_grad():
            self.etf.copy_(etf)
            self.class_means.copy_(means)
            self.seen |= present[:, 0]
