"""Weights files: our own, which describe their network, and published ones, whose network is inferred."""

from __future__ import annotations

import copy
import importlib
import inspect
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medmdm.artifacts.published import INVISIBLE, infer_config
from medmdm.artifacts.weights import find_state, read_checkpoint
from medmdm.backbones.adm_unet import ADMUNet
from medmdm.errors import UserError, nearest
from medmdm.files import save_torch
from medmdm.hashing import file_hash

__all__ = ["convert", "load_network", "load_pretrained"]

logger = logging.getLogger(__name__)

ADM_TARGET = "medmdm.backbones.ADMUNet"
#: Only networks from here are built on the word of a file.
TRUSTED = ("medmdm.networks.", "medmdm.backbones.", "medmdm.heads.", "monai.networks.nets.")


def load_pretrained(
    path: str | os.PathLike[str], *, trust: bool = False, **overrides: Any
) -> tuple[nn.Module, dict[str, Any]]:
    """Rebuild a pre-trained network from its weights file alone.

    A ``model.pt`` of ours carries a plan that names the network and its arguments. Published checkpoints of the
    guided-diffusion family (ADM, MDM) are bare state dicts: their configuration is inferred from names and shapes, and
    what these cannot show is taken as in the paper unless overridden: ``num_head_channels=64``,
    ``use_new_attention_order=False``, ``dropout=0``. Wrapped state dicts (``ema``, ``state_dict``, ``model``) and the
    prefix ``module.`` are understood. Files are read with ``weights_only=True``.

    Args:
        path: the weights file.
        trust: also build a network that is neither ours nor MONAI's if the file names one. This imports and calls
            whatever the file says; use it for files of your own.
        **overrides: arguments of the network to set by hand, for instance ``num_head_channels=32`` or
            ``use_checkpoint=True``. ``num_heads`` alone implies ``num_head_channels=-1``.

    Returns:
        The network, in evaluation mode on the CPU, and the plan. The plan of a published file has the keys ``format``,
        ``network``, ``num_timesteps`` (1000), ``intensity_range`` (``None``: the files' full range), ``ledger``
        (``None``: the training images are not known) and ``source`` (file name, SHA-256 and the arguments that were
        assumed).

    Raises:
        UserError: if the file cannot be read, names a network that is not trusted, or does not fit the network; the
            message names the first parameters that differ and, if it is known, the configuration that would fit.

    Example:
        >>> network, plan = load_pretrained("runs/demo/model.pt")  # doctest: +SKIP
    """
    path = Path(path)
    content = read_checkpoint(path)
    plan = content.get("plan")
    if "kind" in content and "state" in content:
        raise UserError(f"{path}: this is a segmenter, not a backbone: name the model.pt that it was made from.")
    if plan is None:
        state = find_state(content)
        if state is None:
            raise UserError(f"{path}: there is no state dict in this file; its keys are {_first(content)}.")
        network, plan = _from_published(path, state, overrides)
    else:
        state = find_state(content.get("model"))
        if state is None or not isinstance(plan, dict) or not isinstance(plan.get("network"), dict):
            raise UserError(f"{path}: the file has a plan but no weights or no network description; write it again.")
        network, plan = _from_plan(path, state, plan, overrides, trust)
    if isinstance(network, ADMUNet):
        network.to_empty(device="cpu")  # all it holds is in its state dict
    network.load_state_dict(state)
    return network.eval(), plan


def load_network(path: str | os.PathLike[str], *, trust: bool = False, **overrides: Any) -> nn.Module:
    """Return only the network of :func:`load_pretrained`.

    It makes a weights file a config entry::

        "network_def": {"_target_": "medmdm.artifacts.load_network", "path": "runs/demo/model.pt"}
    """
    return load_pretrained(path, trust=trust, **overrides)[0]


def convert(
    source: str | os.PathLike[str], destination: str | os.PathLike[str], *, trust: bool = False, **overrides: Any
) -> dict[str, Any]:
    """Write a published checkpoint as a ``model.pt`` of ours, so that its configuration is never to be guessed again.

    Args:
        source: a file that :func:`load_pretrained` reads.
        destination: the file to write, atomically; it must not exist yet.
        trust: as in :func:`load_pretrained`.
        **overrides: as in :func:`load_pretrained`.

    Returns:
        The plan that was written.

    Raises:
        UserError: as in :func:`load_pretrained`, or if ``destination`` exists.
    """
    if Path(destination).exists():
        raise UserError(f"{destination}: the file exists already; move it away or choose another name.")
    network, plan = load_pretrained(source, trust=trust, **overrides)
    save_torch({"model": network.state_dict(), "plan": plan}, destination)
    return plan


def _from_published(
    path: Path, state: dict[str, Tensor], overrides: Mapping[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    """Build the network that a bare state dict fits."""
    _check_names(path, ADMUNet, overrides)
    try:
        inferred = infer_config(state)
    except UserError as error:
        raise UserError(f"{path}: {error}.") from error
    given = ({"num_head_channels": -1} if "num_heads" in overrides else {}) | dict(overrides)
    assumed = {key: value for key, value in INVISIBLE.items() if key not in given}
    arguments = inferred | assumed | given
    try:
        network = _build(path, ADMUNet, arguments)
    except UserError as error:
        if "num_head_channels" in given:
            raise
        raise UserError(
            f"{error} Weights do not show num_head_channels; the paper's {INVISIBLE['num_head_channels']} was assumed, "
            "pass num_head_channels or num_heads."
        ) from error
    _check_fit(path, network, state, arguments, inferred)
    if assumed:
        told = ", ".join(f"{key}={value}" for key, value in assumed.items())
        logger.warning(f"{path}: weights do not show {told}; this is assumed, pass other values if it is wrong.")
    plan = {
        "format": 1,
        "network": {"_target_": ADM_TARGET, **network.config},
        "num_timesteps": 1000,
        "intensity_range": None,  # files of 8 or 16 bits: their full range becomes -1 and 1
        "ledger": None,
        "source": {"file": path.name, "sha256": file_hash(path), "assumed": assumed},
    }
    return network, plan


def _from_plan(
    path: Path, state: dict[str, Tensor], plan: dict[str, Any], overrides: Mapping[str, Any], trust: bool
) -> tuple[nn.Module, dict[str, Any]]:
    """Build the network that a plan describes."""
    plan = copy.deepcopy(plan)
    target = plan["network"].get("_target_")
    make = _find_target(path, target, trust)
    _check_names(path, make, overrides)
    plan["network"].update(overrides)
    arguments = {key: value for key, value in plan["network"].items() if not key.startswith("_")}
    network = _build(path, make, arguments)
    inferred = None
    if isinstance(network, ADMUNet):
        try:
            inferred = infer_config(state)
        except UserError:
            inferred = None  # the names that differ say more
    _check_fit(path, network, state, arguments, inferred)
    return network, plan


def _find_target(path: Path, target: Any, trust: bool) -> Callable[..., nn.Module]:
    """Return what ``_target_`` names if it may be called: a network of ours or MONAI's, or anything under ``trust``."""
    found = None
    if isinstance(target, str) and (trust or target.startswith(TRUSTED)):
        module, _, name = target.rpartition(".")
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise UserError(f"{path}: the network {target!r} named in this file cannot be imported.") from error
    # the name alone is not enough: modules also hold what they import
    is_network = isinstance(found, type) and issubclass(found, nn.Module) and found.__module__.startswith(TRUSTED)
    if found is None or not (trust or is_network):
        raise UserError(
            f"{path}: the file asks for the network {target!r}, which is neither medmdm's nor MONAI's, so it is not "
            "run; if the file is your own, pass trust=True."
        )
    return found


def _check_names(path: Path, make: Callable[..., nn.Module], overrides: Mapping[str, Any]) -> None:
    """Raise for an override that the network does not take."""
    parameters = inspect.signature(make).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for key in overrides:
        if key not in parameters:
            name = getattr(make, "__name__", make)
            raise UserError(f"{path}: {name} has no argument {key!r}{nearest(key, parameters)}.")


def _build(path: Path, make: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Call ``make``, with the file named in whatever it says of its arguments.

    An :class:`ADMUNet` is built without memory: drawing 311 M random weights to overwrite them takes seconds.
    """
    try:
        with torch.device("meta") if make is ADMUNet else nullcontext():
            return make(**arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: the network of this file cannot be built: {error}") from error


def _check_fit(
    path: Path,
    network: nn.Module,
    state: Mapping[str, Tensor],
    arguments: Mapping[str, Any],
    inferred: Mapping[str, Any] | None,
) -> None:
    """Raise if names or shapes differ, naming the first of each kind and the arguments that would fit."""
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    reshaped = [
        f"{name} {found[name]} instead of {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    differences = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    told = [f"{len(names)} parameters {kind} ({_first(names)})" for kind, names in differences.items() if names]
    if not told:
        return
    advice = ""
    if inferred is not None:
        fitting = [f"{key}={value}" for key, value in inferred.items() if _plain(arguments.get(key)) != value]
        if fitting:
            advice = f"; the weights look like {', '.join(fitting)}"
    raise UserError(f"{path}: the weights do not fit the network: {', '.join(told)}{advice}.")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _first(names: Any, count: int = 3) -> str:
    """Join the first few of ``names``."""
    names = [str(name) for name in names]
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
