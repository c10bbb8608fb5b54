"""Hashes of contents: of files, texts, pixels, tensors and weights, each SHA-256 in 64 hexadecimal digits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor


def file_hash(path: Path) -> str:
    """Return the hash of a file's bytes."""
    with open(path, "rb") as file:
        return stream_hash(file)


def stream_hash(file: IO[bytes]) -> str:
    """Return the hash of what is left to read of an open file."""
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def text_hash(text: str) -> str:
    """Return the hash of a text as UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def lines_hash(lines: Iterable[str]) -> str:
    """Return one hash of several texts, whatever their order."""
    return text_hash("\n".join(sorted(lines)))


def pixel_hash(array: np.ndarray) -> str:
    """Return the hash of decoded pixels, so that the same picture in another file format has the same hash.

    It is over the type's name, the shape and the values in C order, little-endian: weights files and data lists of
    earlier versions hold it.

    Args:
        array: ``[C, *spatial]``, as :func:`medmdm.data.read_image` returns it.
    """
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    digest = hashlib.sha256(f"{array.dtype.name} {array.shape}\n".encode())
    digest.update(array.data)
    return digest.hexdigest()


def tensor_hash(*tensors: Tensor) -> str:
    """Return the hash of types, shapes and values."""
    digest = hashlib.sha256()
    for tensor in tensors:
        array = tensor.detach().cpu().contiguous().numpy()
        digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """Return the hash of a state dict: names, types, shapes and values, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.flatten().view(dtype=torch.uint8).numpy().data if value.numel() else b"")
    return digest.hexdigest()
