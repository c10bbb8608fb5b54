"""Backbones as a workflow opens them: from their file alone, and the two that every claim is compared with."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from medmdm.artifacts.pretrained import load_pretrained, make_ledger
from medmdm.backbones.adapters import RawPixels, randomise
from medmdm.backbones.cache import CachedExtractor
from medmdm.backbones.extractor import FeatureExtractor
from medmdm.backbones.filter_bank import FilterBank
from medmdm.components import instantiate, to_config
from medmdm.corruption import Corruption, FixedTimesteps
from medmdm.data.transforms.intensity import percentiles_record
from medmdm.errors import UserError, nearest
from medmdm.files import weights_hash

INITIALISATIONS = ("pretrained", "random", "raw", "filters")
#: What a plan says of preprocessing; without a backbone the config says it.
PREPROCESSING = ("channels", "spacing", "intensity_range", "percentiles", "slice_axis", "context_slices", "crop_size")
Backbone = str | os.PathLike[str] | tuple[nn.Module, Mapping[str, Any]]


@dataclass(frozen=True)
class OpenBackbone:
    """A backbone ready to give features.

    Args:
        plan: of its weights file, or what the config says where there is none.
        extractor: its features, cached; None without weights.
        identity: hash of its weights, "" without.
        path: of its file.
        device: where it runs, and whatever is fitted to its features.
    """

    plan: Mapping[str, Any] = field(repr=False)
    extractor: CachedExtractor | None = field(default=None, repr=False)
    identity: str = ""
    path: str = ""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


def open_backbone(
    path: str | os.PathLike[str] | None,
    features: Callable[..., tuple[FeatureExtractor, dict[str, Any], str]] | None = None,
    cache: Callable[..., CachedExtractor] = CachedExtractor,
    preprocessing: Mapping[str, Any] | None = None,
    initialise: str = "pretrained",
    sigmas: Sequence[float] = (),
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> OpenBackbone:
    """Open the weights file of a backbone; its own plan says how images are read.

    Args:
        path: weights file; None for methods that need no backbone.
        features: which: :func:`make_extractor` with other arguments than its defaults (``functools.partial``; in a
            bundle ``"_mode_": "callable"``).
        cache: how they are kept: :class:`medmdm.backbones.CachedExtractor` with other arguments than its defaults.
        preprocessing: replaces what the plan says of :data:`PREPROCESSING`; without a backbone nothing else does.
        initialise: ``"pretrained"``; ``"random"``, the same network with new random weights; ``"raw"``, the pixels
            themselves; ``"filters"``, a :class:`medmdm.backbones.FilterBank`: baselines, read as the file's plan says.
        sigmas: for ``"raw"``, of Gaussian filters whose results are features besides the pixels.
        seed: of random weights.
        device: where the backbone runs; ``"meta"`` opens it without taking memory for its weights, to see whether
            everything fits.

    Raises:
        UserError: the file cannot be used, or nothing says how images are to be read.
    """
    given = {key: value for key, value in (preprocessing or {}).items() if value is not None}
    for key in given:
        if key not in PREPROCESSING:
            raise UserError(f"preprocessing has no {key!r}: it takes {', '.join(PREPROCESSING)}.")
    if isinstance(given.get("percentiles"), list):  # as the pre-training config has them
        given["percentiles"] = percentiles_record(given["percentiles"])
    device = torch.device(device)
    if path is None:
        if "crop_size" not in given:
            raise UserError("Without a backbone nothing says how images are read: set preprocessing#crop_size.")
        return OpenBackbone({"ledger": make_ledger(), **given}, device=device)
    if initialise not in INITIALISATIONS:
        raise UserError(f"initialise is {initialise!r}{nearest(initialise, INITIALISATIONS)}.")
    network, plan = load_pretrained(path, device="meta" if device.type == "meta" else "cpu")
    read, forced = features or make_extractor, dict[str, Any]()
    if initialise != "pretrained":
        plan = {**plan, "ledger": make_ledger()}
    if initialise == "random" and device.type != "meta":
        network = randomise(network, seed)
    elif initialise in ("raw", "filters"):
        channels, dims = int(plan.get("channels", 3)), getattr(network, "config", {}).get("spatial_dims", 2)
        network = (RawPixels(channels, sigmas) if initialise == "raw" else FilterBank(channels, dims)).eval()
        plan, forced = {**plan, "network": to_config(network)}, {"blocks": [0], "masking": "none"}
    extractor, plan, identity = read((network, plan), **forced)
    cached = cache(extractor.to(device), backbone_hash=identity)
    return OpenBackbone({**plan, **given}, cached, identity, str(path), device)


def open_backbones(backbones: Mapping[str, Mapping[str, Any]], **common: Any) -> dict[str, OpenBackbone]:
    """Open several backbones.

    Args:
        backbones: by name, arguments of :func:`open_backbone` and of :func:`make_extractor`, side by side.
        **common: arguments of :func:`open_backbone` that they share.

    Raises:
        UserError: as :func:`open_backbone`, naming the backbone.
    """
    opened = {}
    ways = set(inspect.signature(make_extractor).parameters) - {"backbone", "trust"}
    for name, arguments in backbones.items():
        features = {key: value for key, value in arguments.items() if key in ways}
        others = {key: value for key, value in arguments.items() if key not in ways or key == "seed"}
        try:
            opened[name] = open_backbone(**{"features": partial(make_extractor, **features), **common, **others})
        except (TypeError, UserError) as error:
            raise UserError(f"backbones#{name}: {error}") from error
    if not opened:
        raise UserError("backbones is empty: a study needs one at least, if only for how images are read.")
    return opened


def make_extractor(
    backbone: Backbone,
    blocks: str | Sequence[int] = "paper",
    timesteps: Sequence[int] | None = None,
    masking: str = "seeded",
    partitions: int | None = None,
    normalize: str = "rms",
    seed: int = 0,
    corruption: Corruption | Mapping[str, Any] | None = None,
    trust: bool = False,
    context: Sequence[int] | None = None,
    context_deviation: bool = False,
) -> tuple[FeatureExtractor, dict[str, Any], str]:
    """Make the feature extractor of a pre-trained backbone.

    Args:
        backbone: a weights file that :func:`medmdm.artifacts.load_pretrained` reads, or (network, plan).
        blocks: numbers of decoder blocks, or ``"paper"``: see :func:`paper_blocks`.
        timesteps: t at which features are read; None for :func:`default_timestep`.
        masking: as the next three, see :class:`medmdm.backbones.FeatureExtractor`.
        partitions: number of complementary masks.
        normalize: of the features.
        seed: of the masks.
        corruption: what the backbone was trained on, as an object or its config, where the plan does not say it
            (published files) or something else is wanted.
        trust: build any network and corruption that the file names, see :func:`medmdm.artifacts.load_pretrained`.
        context: windows around each pixel, see :class:`medmdm.backbones.FeatureExtractor`; in pixels of the images as
            the backbone reads them, at its plan's spacing.
        context_deviation: see there.

    Returns:
        The extractor, the backbone's plan and the hash of its weights (:func:`medmdm.files.weights_hash`).

    Raises:
        UserError: the file cannot be read, the plan does not name the corruption that a masking needs, or blocks,
            timesteps and the others do not go with the backbone.

    Example:
        >>> extractor, plan, identity = make_extractor("runs/demo/model.pt")  # doctest: +SKIP
    """
    network, plan, name = opened(backbone, trust)
    if not hasattr(network, "features") or not hasattr(network, "feature_info"):
        what = f"{type(network).__name__} has no features(x, timesteps, blocks) and feature_info to read"
        raise UserError(f"{name}: {what}; wrap it in an adapter that has.")
    damage: Any = plan.get("corruption") if corruption is None else corruption
    if isinstance(damage, Mapping):
        damage = instantiate(damage, trust, Corruption)
    if damage is None and masking != "none":
        need = 'pass corruption, for the paper\'s {"_target_": "medmdm.corruption.PatchMasking"}, or masking "none"'
        raise UserError(f"{name}: the plan does not say what the backbone was trained on: {need}.")
    if isinstance(blocks, str):
        if blocks != "paper":
            raise UserError(f'blocks must be "paper" or a list of numbers of decoder blocks, got {blocks!r}.')
        blocks = paper_blocks(network)
    timesteps = [default_timestep(plan, damage)] if timesteps is None else timesteps
    around = (context, context_deviation)
    extractor = FeatureExtractor(network, blocks, timesteps, damage, masking, partitions, normalize, seed, *around)
    return extractor, plan, weights_hash(network.state_dict())


def opened(backbone: Backbone, trust: bool = False) -> tuple[nn.Module, dict[str, Any], str]:
    """Return the network and the plan of a weights file, or those given, and what sentences call them."""
    if isinstance(backbone, tuple):
        return backbone[0], dict(backbone[1]), "The backbone"
    return *load_pretrained(backbone, trust=trust), str(backbone)


def paper_blocks(network: nn.Module) -> list[int]:
    """Return the decoder blocks at the relative position of the paper's for histology, 8 to 12 of 18."""
    numbers = [info["block"] for info in network.feature_info]  # type: ignore[union-attr]
    return numbers[round(8 / 18 * len(numbers)) : round(12 / 18 * len(numbers)) + 1]


def default_timestep(plan: Mapping[str, Any], corruption: Corruption | None = None, share: float = 50 / 1000) -> int:
    """Return the t to read at: the fixed one of an autoencoder, else a share of T (the paper's is 50 of 1000)."""
    timesteps = instantiate(plan["timesteps"]) if plan.get("timesteps") else None
    if isinstance(timesteps, FixedTimesteps):
        return timesteps.timestep
    return round(share * (plan.get("num_timesteps", 1000) if corruption is None else corruption.num_timesteps))
