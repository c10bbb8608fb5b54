"""Changed bytes at seeded places, and what it means that nothing has changed."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch


def flipped(whole: bytes, place: int, bits: int) -> bytes:
    """Return the bytes with some bits of one turned over."""
    return whole[:place] + bytes([whole[place] ^ bits]) + whole[place + 1 :]


def damages(whole: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """Yield so many copies, two of three with one changed byte, the others cut off."""
    rng = random.Random(seed)
    for number in range(count):
        place = rng.randrange(len(whole))
        yield whole[:place] if number % 3 == 2 else flipped(whole, place, 1 << rng.randrange(8))


def equal(a: Any, b: Any) -> bool:
    """Whether two contents are the same to the last bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and equal(a.cpu().numpy(), b.cpu().numpy())
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
