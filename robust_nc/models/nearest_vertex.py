"""The nearest-vertex classifier at any tap: a network up to there, then the nearest class mean.

It is a module like any other, so that it can be attacked itself, never through the network only:

>>> import torch
>>> from robust_nc.config import ModelConfig
>>> from robust_nc.models.build import build_model
>>> model = build_model(ModelConfig(image_shape=(1, 8, 8))).eval()
>>> images = torch.rand(20, 1, 8, 8)
>>> vertices = model.tapped(images).features["block2"].detach().view(10, 2, -1).mean(1)
>>> classifier = nearest_vertex_classifier(model, "block2", vertices, images)
>>> top = classifier(images).topk(2).values.detach()
>>> round(float((top[:, 0] - top[:, 1]).median()), 3)  # the scale is chosen so
5.0
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nc.checks import check_images
from robust_nc.exceptions import InputError, unknown_name
from robust_nc.geometry.inputs import as_vertices
from robust_nc.geometry.nearest import centre
from robust_nc.models.classifier import Classifier
from robust_nc.models.taps import HasTaps, check_feature, pool_features, read_taps
from robust_nc.registry import CONTROLS
from robust_nc.runtime.torch_state import device_of, forward_hooks, full_precision, untouched

_TRIALS = 8  # images on which a pass that ends at the tap is compared with a whole one
_BELOW = 4.0  # how far below the others a class without a vertex lies, in ranges of its logits


class NearestVertexClassifier(nn.Module):
    """Images `(N, C, H, W)` to logits `(N, K)` by the distance of a tap's features to vertices.

    Logits are ((h - s).(mu_k - s) - |mu_k - s|^2 / 2) / scale, with s the mean vertex: they order
    the classes as -|h - mu_k|^2 does, which loses 0.1 of margin in float32 at D = 65,536. `model`
    is kept, not copied; `tap` and `feature` ("gap" or "flatten") name its features `(N, D)`, and
    `vertices` `(K, D)` are class means of them. Shift, rows and bias are buffers, computed in
    float64.

    A class without a vertex (a row of NaN) lies four times the range of the other logits below
    the lowest of them, without a gradient: it never wins, and every loss stays finite.

    The pass of a `Classifier` ends at the tap. `ends_at_tap` says whether that of a foreign module
    is broken off there, too; `nearest_vertex_classifier` tries that. Raises `InputError` for
    vertices that cannot be used, a scale that is not above 0, and features of another width.
    """

    shift: Tensor
    rows: Tensor
    bias: Tensor
    absent: Tensor
    scale: Tensor

    def __init__(
        self,
        model: nn.Module,
        tap: str,
        vertices: Tensor,
        *,
        feature: str = "gap",
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        check_feature(feature)
        if isinstance(model, HasTaps) and tap not in model.taps:
            raise unknown_name("tap", tap, model.taps)
        if not 0 < scale < float("inf"):
            raise InputError(f"scale must be finite and above 0, found {scale}")
        self.model = model
        self.tap = tap
        self.feature = feature
        self.ends_at_tap = False
        self.training = model.training
        for name, buffer in _buffers(as_vertices(vertices), scale).items():
            self.register_buffer(name, buffer.to(device_of(model)))

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.rows)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(N, K)`."""
        features = self.features(images)
        if features.shape[1] != self.rows.shape[1]:
            raise InputError(
                f"tap {self.tap!r} gives {features.shape[1]} features by {self.feature!r}, the "
                f"vertices have {self.rows.shape[1]}; take both from the same tap and feature"
            )
        with torch.autocast(features.device.type, enabled=False):
            shifted = features.to(self.rows.dtype) - self.shift
            logits = F.linear(shifted, self.rows, self.bias)
            return torch.where(self.absent, _beneath(logits, self.absent), logits)

    def features(self, images: Tensor) -> Tensor:
        """Return the features `(N, D)` of the tap, with their graph."""
        model = self.model
        # A subclass may read its taps in a way of its own.
        if type(model) is Classifier:
            return _features_of(model, self.tap, images, self.feature)
        if self.ends_at_tap:
            return _broken_off(model, self.tap, images, self.feature)
        return read_taps(model, images, [self.tap], self.feature).features[self.tap]

    def extra_repr(self) -> str:
        """Show the tap and the sizes when the module is printed."""
        classes, dim = self.rows.shape
        return f"tap={self.tap!r}, feature={self.feature!r}, {dim} -> {classes}"


def nearest_vertex_classifier(
    model: nn.Module, tap: str, vertices: Tensor, images: Tensor, *, feature: str = "gap"
) -> NearestVertexClassifier:
    """Return the classifier whose median margin on clean `images` `(N, C, H, W)` is 5.

    The scale is kept in `scale`: cross-entropy in float32 has no gradient beyond a margin of about
    18, and features as they are would reach any margin. The margin is the largest logit minus the
    second. Raises what `NearestVertexClassifier` raises, also where the features do not fit.
    """
    images = check_images(images).to(device_of(model))
    # Squares of large features overflow in float32, so edges of about 1 come first.
    centred = centre(as_vertices(vertices))
    size = float(centred.rows.square().sum(1)[~centred.bias.isinf()].mean()) or 1.0
    first = NearestVertexClassifier(model, tap, vertices, feature=feature, scale=size)
    ends = not isinstance(model, HasTaps) and _reads_alike(first, images[:_TRIALS])
    first.ends_at_tap = ends
    with full_precision():
        scale = size * CONTROLS.load("logit_scale")(first, images)
    found = NearestVertexClassifier(model, tap, vertices, feature=feature, scale=scale)
    found.ends_at_tap = ends
    return found


def _buffers(vertices: Tensor, scale: float) -> dict[str, Tensor]:
    """Everything that the logits need, from float64 vertices; already divided by the scale."""
    centred = centre(vertices)
    absent = centred.bias.isinf()
    shift = centred.shift.float()
    # What rounding takes from the shift is in the bias: a large common offset costs nothing.
    lost = centred.rows @ (centred.shift - shift)
    bias = centred.bias.masked_fill(absent, 0) - lost
    return {
        "shift": shift,
        "rows": (centred.rows / scale).float(),
        "bias": (bias / scale).float(),
        "absent": absent,
        "scale": torch.tensor(scale, dtype=torch.float64),
    }


def _beneath(logits: Tensor, absent: Tensor) -> Tensor:
    """What an absent class gets, `(N, 1)`: below all others, also where rounding is coarse."""
    values = logits.detach()
    low = values.masked_fill(absent, torch.inf).amin(1, keepdim=True)
    high = values.masked_fill(absent, -torch.inf).amax(1, keepdim=True)
    return low - _BELOW * (high - low) - 1e-6 * low.abs() - 1e-30


def _features_of(model: Classifier, tap: str, images: Tensor, feature: str) -> Tensor:
    """Features of one tap of our own model; no later block runs."""
    model.backbone.check_shape((images.shape[1], images.shape[2], images.shape[3]))
    for name, output in model.backbone.blocks(model.normalise(images)):
        if name == tap:
            return pool_features(output, feature)
    raise unknown_name("tap", tap, model.taps)


class _Reached(Exception):  # noqa: N818, no error: it ends a pass
    """Carries a layer's output out of the pass that it ends."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output


def _broken_off(model: nn.Module, tap: str, images: Tensor, feature: str) -> Tensor:
    """Features of one layer of a foreign model, from a pass that ends when it has run."""

    def end(_module: nn.Module, _args: tuple[object, ...], output: Tensor) -> None:
        raise _Reached(output)

    try:
        with forward_hooks([(model.get_submodule(tap), end)]):
            model(images)
    except _Reached as reached:
        return pool_features(reached.output, feature)
    raise InputError(f"tap {tap!r} did not run; choose another layer")


@torch.no_grad()
def _reads_alike(classifier: NearestVertexClassifier, images: Tensor) -> bool:
    """Whether a pass that ends at the tap gives the features of a whole one.

    It does not where the layer runs several times, where the model catches what is raised within
    it, or where it runs no hooks of its parts.
    """
    model, tap, feature = classifier.model, classifier.tap, classifier.feature
    with untouched(model), full_precision():
        whole = classifier.features(images)
        try:
            return torch.equal(_broken_off(model, tap, images, feature), whole)
        except Exception:  # whatever a stranger's model makes of it
            return False
