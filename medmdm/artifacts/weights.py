"""Weights files: reading what they hold without running anything in it, and filling networks with it."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medmdm.artifacts.published import infer_config
from medmdm.backbones.adm_unet import ADMUNet
from medmdm.components import find, instantiate
from medmdm.errors import UserError

__all__ = ["build", "fill", "find_state", "first_of", "read_checkpoint"]

#: Where training programs put the state dict, averaged weights first.
WRAPPERS = ("ema", "state_dict", "model")
#: What ``DistributedDataParallel``, ``AveragedModel`` and ``torch.compile`` put before every name.
PREFIXES = ("module.", "_orig_mod.")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the dictionary in ``path``, or say in one sentence why there is none."""
    if not path.is_file():
        raise UserError(
            f"{path}: {'this is a folder' if path.is_dir() else 'there is no such file'}; name a weights file."
        )
    with open(path, "rb") as file:
        is_archive = file.read(4) == b"PK\x03\x04"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch has no error of its own here: pickle's, zip's and KeyErrors have been seen
        if is_archive and not zipfile.is_zipfile(path):
            reason = "the file is cut off; copy or download it again"
        elif is_archive and isinstance(error, pickle.UnpicklingError):
            reason = (
                "the file holds Python objects besides tensors, which could run code when loaded; save the state dict "
                "alone, torch.save(network.state_dict(), path), where it comes from"
            )
        else:
            reason = "this is not a PyTorch checkpoint, or it is damaged"
        raise UserError(f"{path}: {reason}.") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: expected a state dict, found a {type(content).__name__}.")
    return dict(content)


def find_state(content: Any) -> dict[str, Tensor] | None:
    """Return the state dict in ``content`` with the wrappers and prefixes of training programs removed."""
    if not isinstance(content, Mapping):
        return None
    for wrapper in WRAPPERS:
        if isinstance(content.get(wrapper), Mapping):
            return find_state(content[wrapper])
    if not content or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()):
        return None
    state = dict(content)
    state.pop("n_averaged", None)  # the counter of AveragedModel
    for prefix in PREFIXES:
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def build(path: Path, config: Mapping[str, Any], trust: bool = False) -> nn.Module:
    """Make the network that a file describes, with the file named in whatever is wrong with it.

    An :class:`ADMUNet` is built without memory, see :func:`fill`: drawing 311 M random weights to overwrite them takes
    seconds.

    Args:
        path: the file.
        config: ``_target_`` and arguments; what else begins with ``_`` is not looked at.
        trust: as for :func:`medmdm.components.find`.
    """
    try:
        make = find(config.get("_target_"), trust)
        arguments = {key: value for key, value in config.items() if key[:1] != "_"}
        with torch.device("meta") if make is ADMUNet else nullcontext():
            network: nn.Module = instantiate({"_target_": config["_target_"], **arguments}, trust, nn.Module)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return network


def fill(path: Path, network: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Load a state dict into the network that :func:`build` made for it, in evaluation mode.

    Raises:
        UserError: names or shapes differ; the first of each kind are named, and the arguments that would fit.
    """
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    reshaped = [
        f"{name} {found[name]} instead of {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    differences = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "of another shape": reshaped,
    }
    told = [f"{len(names)} parameters {kind} ({first_of(names)})" for kind, names in differences.items() if names]
    if told:
        raise UserError(f"{path}: the weights do not fit the network: {', '.join(told)}{_advice(network, state)}.")
    if isinstance(network, ADMUNet):
        network.to_empty(device="cpu")  # all it holds is in its state dict
    network.load_state_dict(state)
    return network.eval()


def _advice(network: nn.Module, state: Mapping[str, Tensor]) -> str:
    """Say which arguments would fit the weights, where that can be seen."""
    if not isinstance(network, ADMUNet):
        return ""
    try:
        inferred = infer_config(state)
    except UserError:  # the names that differ say more
        return ""
    fitting = [f"{key}={value}" for key, value in inferred.items() if network.config[key] != value]
    return f"; the weights look like {', '.join(fitting)}" if fitting else ""


def first_of(names: Iterable[Any], count: int = 3) -> str:
    """Join the first few of ``names``."""
    names = [str(name) for name in names]
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
