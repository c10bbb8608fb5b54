"""Reading what a weights file holds, without running anything in it."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medmdm.errors import UserError

__all__ = ["find_state", "read_checkpoint"]

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
