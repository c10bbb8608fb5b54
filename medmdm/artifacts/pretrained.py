"""Weights files: our own, which describe their network, and published ones, whose network is inferred."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from medmdm.artifacts.weights import INVISIBLE, build, fill, find_state, first_of, infer_config, naming, read_checkpoint
from medmdm.components import to_config
from medmdm.errors import UserError
from medmdm.files import save_torch
from medmdm.hashing import file_hash

__all__ = ["convert", "load_network", "load_pretrained"]

logger = logging.getLogger(__name__)


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
    with naming(path):
        if plan is None:
            state = find_state(content)
            if state is None:
                raise UserError(f"there is no state dict in this file; its keys are {first_of(content)}.")
            network, plan = _from_published(path, state, overrides)
        else:
            state = find_state(content.get("model"))
            if state is None or not isinstance(plan, dict) or not isinstance(plan.get("network"), dict):
                raise UserError("the file has a plan but no weights or no network description; write it again.")
            plan["network"].update(overrides)
            network = build(plan["network"], trust)
        return fill(network, state), plan


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
    inferred = infer_config(state)
    given = ({"num_head_channels": -1} if "num_heads" in overrides else {}) | dict(overrides)
    assumed = {key: value for key, value in INVISIBLE.items() if key not in given}
    arguments = inferred | assumed | given
    try:
        network = build({"_target_": "medmdm.backbones.ADMUNet", **arguments})
    except UserError as error:
        guess = f"num_head_channels {INVISIBLE['num_head_channels']}"
        if "num_head_channels" in given or guess not in str(error):
            raise
        raise UserError(
            f"{error} Weights do not show it; the paper's {guess} was assumed, pass num_head_channels or num_heads."
        ) from error
    if assumed:
        told = ", ".join(f"{key}={value}" for key, value in assumed.items())
        logger.warning(f"{path}: weights do not show {told}; this is assumed, pass other values if it is wrong.")
    plan = {
        "format": 1,
        "network": to_config(network),
        "num_timesteps": 1000,
        "intensity_range": None,  # files of 8 or 16 bits: their full range becomes -1 and 1
        "ledger": None,
        "source": {"file": path.name, "sha256": file_hash(path), "assumed": assumed},
    }
    return network, plan
