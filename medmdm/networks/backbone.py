"""From a pre-trained backbone to its features: what the weights' own plan says is not asked again."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from medmdm.corruption import Corruption, FixedTimesteps, from_config
from medmdm.errors import UserError
from medmdm.networks.checkpoints import load_pretrained
from medmdm.networks.extractor import FeatureExtractor
from medmdm.networks.weights_files import weights_hash

__all__ = ["default_timestep", "make_extractor", "paper_blocks"]

Backbone = str | os.PathLike[str] | tuple[nn.Module, Mapping[str, Any]]


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
) -> tuple[FeatureExtractor, dict[str, Any], str]:
    """Make the feature extractor of a pre-trained backbone.

    Args:
        backbone: a weights file that :func:`medmdm.networks.load_pretrained` reads, or (network, plan).
        blocks: numbers of decoder blocks, or ``"paper"``: see :func:`paper_blocks`.
        timesteps: t at which features are read; None for :func:`default_timestep`.
        masking: as the next three, see :class:`medmdm.networks.FeatureExtractor`.
        partitions: number of complementary masks.
        normalize: of the features.
        seed: of the masks.
        corruption: what the backbone was trained on, as an object or its config, where the plan does not say it
            (published files) or something else is wanted.
        trust: build any network and corruption that the file names, see :func:`medmdm.networks.load_pretrained`.

    Returns:
        The extractor, the backbone's plan and the hash of its weights
        (:func:`medmdm.networks.weights_files.weights_hash`).

    Raises:
        UserError: the file cannot be read, the plan does not name the corruption that a masking needs, or blocks,
            timesteps and the others do not go with the backbone.

    Example:
        >>> extractor, plan, identity = make_extractor("runs/demo/model.pt")  # doctest: +SKIP
    """
    if isinstance(backbone, tuple):
        network, given = backbone
        plan, name = dict(given), "The backbone"
    else:
        network, plan = load_pretrained(backbone, trust=trust)
        name = str(backbone)
    if not hasattr(network, "features") or not hasattr(network, "feature_info"):
        raise UserError(
            f"{name}: {type(network).__name__} has no features(x, timesteps, blocks) and feature_info to read; "
            "wrap it in an adapter that has."
        )
    described = plan.get("corruption") if corruption is None else corruption
    damage: Corruption | None = from_config(described, trust) if isinstance(described, Mapping) else described
    if damage is None and masking != "none":
        raise UserError(
            f"{name}: the plan does not say what the backbone was trained on: pass corruption, for the paper's "
            '{"_target_": "medmdm.corruption.PatchMasking"}, or masking "none".'
        )
    if isinstance(blocks, str):
        if blocks != "paper":
            raise UserError(f'blocks must be "paper" or a list of numbers of decoder blocks, got {blocks!r}.')
        blocks = paper_blocks(network)
    extractor = FeatureExtractor(
        network,
        blocks=blocks,
        timesteps=default_timestep(plan, damage) if timesteps is None else timesteps,
        corruption=damage,
        masking=masking,
        partitions=partitions,
        normalize=normalize,
        seed=seed,
    )
    return extractor, plan, weights_hash(network.state_dict())


def paper_blocks(network: nn.Module) -> list[int]:
    """Return the decoder blocks at the relative position of the paper's, 8 to 12 of 18 (histology).

    Of n blocks these are ``round(8 / 18 n)`` to ``round(12 / 18 n)``.
    """
    numbers = [info["block"] for info in network.feature_info]  # type: ignore[union-attr]
    return numbers[round(8 / 18 * len(numbers)) : round(12 / 18 * len(numbers)) + 1]


def default_timestep(plan: Mapping[str, Any], corruption: Corruption | None = None) -> list[int]:
    """Return the t to read features at: the fixed one of an autoencoder, else the paper's 50 of 1000, scaled to T."""
    draw = plan.get("timesteps")
    if draw is not None:
        timesteps = from_config(draw)
        if isinstance(timesteps, FixedTimesteps):
            return [timesteps.timestep]
    total = plan.get("num_timesteps", 1000) if corruption is None else corruption.num_timesteps
    return [round(total * 50 / 1000)]
