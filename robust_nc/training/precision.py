"""How training computes: the precision of its products, and the compiled model.

>>> before = torch.backends.cudnn.allow_tf32
>>> with products("tf32", torch.device("cpu")):
...     torch.backends.cudnn.allow_tf32 == before
True
"""

from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
from torch import Tensor, nn

from robust_nc.config import Compile
from robust_nc.runtime.torch_state import float32_products


def products(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """Let CUDA round the factors of float32 products to 10 bits if `precision` is "tf32".

    Restored on the way out. Any other precision, and any other device, stay as they are.
    """
    if precision == "tf32" and device.type == "cuda":
        return float32_products("tf32")
    return nullcontext()


def compiled(model: nn.Module, how: Compile) -> nn.Module:
    """Return a model under `torch.compile`, or itself if `how` is False.

    "reduce-overhead" replays CUDA graphs. What they answer lies in memory that the next replay
    writes over, so its logits are copied: an inner attack keeps those of the clean images.
    """
    if how is False:
        return model
    if how is True:
        return cast(nn.Module, torch.compile(model))
    graph = cast(nn.Module, torch.compile(model, mode=how))
    graph.register_forward_hook(_copied)
    return graph


def _copied(model: nn.Module, given: tuple[Tensor, ...], logits: Tensor) -> Tensor:
    return logits.clone()
