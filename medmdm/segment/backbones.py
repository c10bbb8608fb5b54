"""Backbones as a workflow opens them: from their file alone, and the two that every claim is compared with."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from medmdm.data.intensity import percentiles_record
from medmdm.engines.plan import make_ledger
from medmdm.errors import UserError, nearest
from medmdm.features.cache import CachedExtractor
from medmdm.networks.adapters import RawPixels, randomise
from medmdm.networks.backbone import make_extractor
from medmdm.networks.checkpoints import load_pretrained

__all__ = ["INITIALISATIONS", "PREPROCESSING", "OpenBackbone", "open_backbone", "open_backbones"]

INITIALISATIONS = ("pretrained", "random", "raw")

#: What a plan says of preprocessing; without a backbone the config says it.
PREPROCESSING = ("channels", "spacing", "intensity_range", "percentiles", "slice_axis", "context_slices", "crop_size")


@dataclass(frozen=True)
class OpenBackbone:
    """A backbone ready to give features.

    Args:
        plan: of its weights file, or what the config says where there is none.
        extractor: its features, cached; None without weights.
        identity: hash of its weights, "" without.
        path: of its file.
    """

    plan: Mapping[str, Any] = field(repr=False)
    extractor: CachedExtractor | None = field(default=None, repr=False)
    identity: str = ""
    path: str = ""


def open_backbone(
    path: str | os.PathLike[str] | None,
    blocks: str | Sequence[int] = "paper",
    timesteps: Sequence[int] | None = None,
    masking: str = "seeded",
    partitions: int | None = None,
    normalize: str = "rms",
    seed: int = 0,
    corruption: Mapping[str, Any] | None = None,
    cache: str | os.PathLike[str] | None = None,
    cache_gib: float = 20.0,
    memory_gib: float = 2.0,
    preprocessing: Mapping[str, Any] | None = None,
    initialise: str = "pretrained",
    sigmas: Sequence[float] = (),
    device: torch.device | str = "cpu",
) -> OpenBackbone:
    """Open the weights file of a backbone; its own plan says how images are read.

    Args:
        path: weights file; None for methods that need no backbone.
        blocks: as the next six, see :func:`medmdm.networks.backbone.make_extractor`.
        timesteps: at which features are read.
        masking: how the image is corrupted for it.
        partitions: number of complementary masks.
        normalize: of the features.
        seed: of the masks.
        corruption: where the plan does not say it.
        cache: folder of cached features; None for memory only.
        cache_gib: most that the files may take.
        memory_gib: most that is kept in memory.
        preprocessing: replaces what the plan says of :data:`PREPROCESSING`; without a backbone nothing else does.
        initialise: ``"pretrained"``; ``"random"``, the same network with new random weights; ``"raw"``, the pixels
            themselves: the baselines, read as the file's plan says.
        sigmas: for ``"raw"``, of Gaussian filters whose results are features besides the pixels.
        device: where the backbone runs.

    Raises:
        UserError: the file cannot be used, or nothing says how images are to be read.
    """
    given = {key: value for key, value in (preprocessing or {}).items() if value is not None}
    unknown = [key for key in given if key not in PREPROCESSING]
    if unknown:
        raise UserError(f"preprocessing has no {unknown[0]!r}: it takes {', '.join(PREPROCESSING)}.")
    if isinstance(given.get("percentiles"), list):  # as the pre-training config has them
        given["percentiles"] = percentiles_record(given["percentiles"])
    if path is None:
        if "crop_size" not in given:
            raise UserError("Without a backbone nothing says how images are read: set preprocessing#crop_size.")
        return OpenBackbone({"ledger": make_ledger(), **given})
    if initialise not in INITIALISATIONS:
        raise UserError(f"initialise is {initialise!r}{nearest(initialise, INITIALISATIONS)}.")
    network, plan = load_pretrained(path)
    if initialise != "pretrained":
        plan = {**plan, "ledger": make_ledger()}
    if initialise == "random":
        network = randomise(network, seed)
    elif initialise == "raw":
        network, blocks, masking = RawPixels(int(plan.get("channels", 3)), sigmas).eval(), [0], "none"
    extractor, plan, identity = make_extractor(
        (network, plan), blocks, timesteps, masking, partitions, normalize, seed, corruption=corruption
    )
    extractor.to(torch.device(device))
    cached = CachedExtractor(extractor, cache, cache_gib, memory_gib, identity)
    return OpenBackbone({**plan, **given}, cached, identity, str(path))


def open_backbones(backbones: Mapping[str, Mapping[str, Any]], **common: Any) -> dict[str, OpenBackbone]:
    """Open several backbones.

    Args:
        backbones: by name, arguments of :func:`open_backbone`.
        **common: arguments that they share.

    Raises:
        UserError: as :func:`open_backbone`, naming the backbone.
    """
    opened = {}
    for name, arguments in backbones.items():
        try:
            opened[name] = open_backbone(**{**common, **arguments})
        except (TypeError, UserError) as error:
            raise UserError(f"backbones#{name}: {error}") from error
    if not opened:
        raise UserError("backbones is empty: a study needs one at least, if only for how images are read.")
    return opened
