"""Models that a user's own code makes: a factory, a class, or a module that is there already.

>>> from robust_nc.plugins import split_code
>>> from_code(split_code("torch.nn:Identity"))
Identity()
"""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from robust_nc.exceptions import ConfigError
from robust_nc.plugins import Code, findable, lacks, load_code
from robust_nc.zoo.guard import Tell, strangers_code

_VALID = "a module that can be imported here, or path/to/file.py"


def from_code(
    code: Code, *, options: Mapping[str, Any] | None = None, tell: Tell | None = None
) -> nn.Module:
    """Run the code that its user named and return the model that it makes, on the CPU.

    A class or a function is called without arguments; with `options`, with those of them that it
    takes by name (and, where it takes a `config`, with all of them as that). Raises `ConfigError`
    in one sentence where there is no such code, where it fails, hangs, or makes no `nn.Module`.
    """
    reference = f"{code.place}:{code.name}"
    with strangers_code(reference, tell), findable(code):
        found = load_code(code, valid=_VALID)
        if isinstance(found, nn.Module):
            return found.cpu()
        if not callable(found):
            raise lacks(code)
        arguments = _arguments(reference, found, options, tell)
        made = found(**arguments)
        if isinstance(made, nn.Module):
            return made.cpu()
        raise ConfigError(_no_model(reference, made))


def _arguments(
    reference: str, factory: Any, options: Mapping[str, Any] | None, tell: Tell | None
) -> dict[str, Any]:
    """Choose what a factory is called with; `ConfigError` where that is not enough."""
    parameters = _parameters(factory)
    chosen = _chosen(parameters, options or {})
    left = [key for key in options or {} if key not in chosen and "config" not in chosen]
    if left and tell is not None:
        tell(f"{reference} takes no {', '.join(left)} of config.json; left out")
    needed = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and name not in chosen
    ]
    if needed and options is None:
        raise ConfigError(
            f"{reference} is called without arguments, but needs {', '.join(needed)}; give it "
            "defaults, or name a function that calls it"
        )
    if needed:
        raise ConfigError(
            f"{reference} needs {', '.join(needed)}, which config.json lacks; it holds "
            f"{', '.join(map(str, options or {}))[:200] or 'nothing'}"
        )
    return chosen


def _parameters(factory: Any) -> dict[str, inspect.Parameter]:
    """Return what a function or the constructor of a class takes."""
    if getattr(factory, "__init__", None) is nn.Module.__init__:  # takes anything, to refuse it
        return {}
    try:
        signature = inspect.signature(factory.__init__ if inspect.isclass(factory) else factory)
    except (TypeError, ValueError):  # of code that is not in Python
        return {}
    parameters = dict(signature.parameters)
    if inspect.isclass(factory):
        parameters.pop(next(iter(parameters), ""), None)  # self
    return parameters


def _chosen(
    parameters: Mapping[str, inspect.Parameter], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the options that parameters take, as huggingface_hub's mixin chooses them."""
    kinds = {parameter.kind for parameter in parameters.values()}
    takes_all = inspect.Parameter.VAR_KEYWORD in kinds
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    named = [name for name, found in parameters.items() if found.kind not in variable]
    chosen = {key: value for key, value in options.items() if takes_all or key in named}
    if options and "config" in named and "config" not in chosen:
        chosen["config"] = dict(options)
    return chosen


def _no_model(reference: str, made: object) -> str:
    said = f"{reference} must return a torch.nn.Module, found "
    if isinstance(made, tuple | list) and any(isinstance(part, nn.Module) for part in made):
        return f"{said}a {type(made).__name__} with one in it; return the model alone"
    if isinstance(made, type):
        return f"{said}the class {made.__name__}; return an instance of it"
    if isinstance(made, dict):
        return f"{said}a dict; build the model, load these weights into it, and return it"
    return f"{said}{type(made).__name__}"
