"""The state of a training: weights, momentum and generators, to and from the CPU.

>>> import torch
>>> first, second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
>>> load_weights(second, weights_of(first))
>>> torch.equal(first.weight, second.weight)
True
"""

from typing import Any

import torch
from torch import Tensor, nn

from robust_nc.config import TrainConfig
from robust_nc.exceptions import CheckpointError, ConfigError
from robust_nc.models.backbones import Backbone
from robust_nc.models.necks import without_neck
from robust_nc.runtime.torch_state import device_of, untouched

Tensors = dict[str, Tensor]


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.SGD:
    """SGD with momentum and weight decay on all learnable parameters.

    A group's `factor` times the scheduled rate is its rate. With `backbone_lr = 0` the parameters
    of the backbone stop being learnable.
    """
    if config.nesterov and config.momentum == 0:
        raise ConfigError("train.nesterov needs train.momentum above 0, found 0")
    return torch.optim.SGD(
        _groups(model, config.backbone_lr),
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
    )


def _groups(model: nn.Module, backbone_lr: float) -> list[dict[str, Any]]:
    """Return the learnable parameters in groups of one rate."""
    learnable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if backbone_lr == 1:
        return [{"params": learnable, "factor": 1.0}]
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, nn.Module):
        raise ConfigError(
            f"train.backbone_lr needs a model with a backbone, and {type(model).__name__} has "
            "none; leave it out"
        )
    if isinstance(backbone, Backbone):
        backbone = without_neck(backbone)
    if backbone_lr == 0:
        backbone.requires_grad_(False)
    inside = {id(parameter) for parameter in backbone.parameters()}
    groups = [
        {"params": [p for p in learnable if id(p) not in inside], "factor": 1.0},
        {"params": [p for p in learnable if id(p) in inside], "factor": backbone_lr},
    ]
    groups = [group for group in groups if group["params"] and group["factor"]]
    if not groups:
        raise ConfigError(
            "train.backbone_lr is 0 and the head has nothing to learn, so that no parameter is "
            "left; choose a learnable head, or a backbone_lr above 0"
        )
    return groups


def weights_of(model: nn.Module) -> Tensors:
    """Copy a model's parameters and buffers to the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def load_weights(model: nn.Module, weights: Tensors) -> None:
    """Put weights into a model, or raise `CheckpointError` where they are not of its shape."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"the checkpoint's weights are not of this model: {' '.join(str(error).split())}"
        ) from error


def momentum_of(model: nn.Module, optimizer: torch.optim.SGD) -> Tensors:
    """Copy the momentum of each parameter that has one to the CPU."""
    buffers = {
        name: optimizer.state.get(parameter, {}).get("momentum_buffer")
        for name, parameter in model.named_parameters()
    }
    return {
        name: buffer.detach().cpu().clone()
        for name, buffer in buffers.items()
        if buffer is not None
    }


def load_momentum(model: nn.Module, optimizer: torch.optim.SGD, momentum: Tensors) -> None:
    """Give the optimizer the momentum of a checkpoint."""
    for name, parameter in model.named_parameters():
        if name in momentum:
            # In the parameter's own memory layout, so that sums keep their order.
            buffer = torch.empty_like(parameter.detach()).copy_(momentum[name])
            optimizer.state[parameter]["momentum_buffer"] = buffer


def finite_weights(model: nn.Module) -> bool:
    """Whether all parameters and buffers are finite (waits for the device)."""
    floats = [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
    return bool(torch.stack([tensor.detach().isfinite().all() for tensor in floats]).all())


def finite_logits(model: nn.Module, images: Tensor) -> bool:
    """Whether the model's logits for these images are finite, in train and in eval mode."""
    for training in (True, False):
        with untouched(model, training=training), torch.no_grad():
            if not bool(torch.isfinite(model(images)).all()):
                return False
    return True


def seed_modules(model: nn.Module, seed: int) -> None:
    """Seed the global generators from which modules such as dropout draw."""
    torch.default_generator.manual_seed(seed)
    if device_of(model).type == "cuda":
        torch.cuda.manual_seed(seed)


def draws_of(model: nn.Module) -> Tensors:
    """Return the states of the global generators from which modules such as dropout draw."""
    states = {"cpu": torch.default_generator.get_state()}
    device = device_of(model)
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def load_draws(model: nn.Module, states: Tensors) -> None:
    """Put the global generators into these states; one that has none here is left as it is."""
    torch.default_generator.set_state(states["cpu"])
    device = device_of(model)
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
