"""A head that follows the features: the simplex ETF nearest to their class means.

>>> import torch
>>> head = NearestEtfHead(3, 8, seed=0)
>>> features, labels = torch.eye(3, 8), torch.arange(3)
>>> for _ in range(200):
...     head.observe(features, labels)
>>> [round(value, 3) for value in (head.frame() @ features[0]).tolist()]
[0.816, -0.408, -0.408]
"""

from typing import ClassVar

import torch
from torch import Tensor

from robust_nc.exceptions import InputError
from robust_nc.models.frames import nearest_etf, simplex_etf
from robust_nc.models.heads import Head, unit_rows
from robust_nc.types import Features, Labels, Vertices


class NearestEtfHead(Head):
    """Simplex ETF W nearest to the class means of the features (Markou et al., NeurIPS 2024).

    logits = tau / temperature * (features / |features| - mu_G) W^T, with mu_G the unweighted mean
    of the stored class means. Features are always brought to unit length, as in the paper, whatever
    the configuration's `normalise_features`. No parameter: `observe` moves W, and nothing else
    does, so that logits depend on their own features and the stored state only.

    The stored class means of unit features are exponential averages over batches, `momentum` the
    share of history. Classes missing from a batch keep theirs; before a class is first seen its row
    of the initial, random ETF stands for it. `delta` draws W to the one before it (`nearest_etf`),
    which settles the directions that the means leave open. Two things differ from the paper: no
    gradient flows through how W is found, and the pull is on W, not on the whole of the orthonormal
    P behind it, one direction of which W does not see.
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
        initial = simplex_etf(num_classes, dim, seed=seed)
        self.register_buffer("etf", initial)
        self.register_buffer("class_means", initial.clone())
        self.register_buffer("seen", torch.zeros(num_classes, dtype=torch.bool))

    def vertices(self) -> Vertices:
        """W times tau over temperature."""
        return self.etf * (self.tau / self.temperature)

    def bias_vector(self) -> Tensor:
        """Minus what the vertices make of the stored mean."""
        return -(self.vertices() * self.class_means.mean(0)).sum(1)

    def frame(self) -> Vertices:
        """Return a copy of W, unit rows, as it is now."""
        return self.etf.clone()

    @torch.no_grad()
    def observe(self, features: Features, labels: Labels) -> None:
        """Bring the stored class means and W up to a batch; the same in train and eval mode.

        Features that are not finite change nothing: they show in the loss. An empty batch, too.
        """
        device = self.etf.device
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
        self.etf.copy_(nearest_etf(means, toward=self.etf, delta=self.delta))
        self.class_means.copy_(means)
        self.seen |= present[:, 0]
