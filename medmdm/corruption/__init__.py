"""q(x_t | x_0): how an image is damaged at timestep t, and how t is drawn. One class an equation.

Every corruption is called as ``corrupt(x0, t, generator)`` and returns a :class:`Corrupted`. Fixing t turns masked
diffusion into a masked autoencoder and Gaussian diffusion into a denoising autoencoder (method of Pan, Chen and Shi,
"Masked Diffusion as Self-supervised Representation Learner", arXiv 2308.05695).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pydoc import locate
from typing import Any

from medmdm.corruption.base import Corrupted, Corruption, Generators
from medmdm.corruption.masking import PatchMasking
from medmdm.corruption.noise import GaussianNoise, MaskedNoise
from medmdm.corruption.timesteps import FixedTimesteps, UniformTimesteps
from medmdm.errors import UserError, nearest

__all__ = [
    "Corrupted",
    "Corruption",
    "FixedTimesteps",
    "GaussianNoise",
    "Generators",
    "MaskedNoise",
    "PatchMasking",
    "UniformTimesteps",
    "from_config",
]


def from_config(config: Mapping[str, Any], trust: bool = False) -> Any:
    """Rebuild what ``to_config`` of a class of this module described, as the plan in a weights file holds it.

    Args:
        config: ``{"_target_": "medmdm.corruption.<class>", arguments}``.
        trust: also import and call another target; use it for files of your own.

    Returns:
        The :class:`Corruption`, or the draw of timesteps.

    Raises:
        UserError: another target (nothing outside this module is run on the word of a file), or arguments that do not
            fit.

    Example:
        >>> from_config({"_target_": "medmdm.corruption.PatchMasking", "patch_size": 4}).patch_size
        4
    """
    target = config.get("_target_")
    known = {f"{__name__}.{name}": globals()[name] for name in __all__}
    known = {name: c for name, c in known.items() if hasattr(c, "to_config") and not inspect.isabstract(c)}
    found = known.get(str(target))
    if found is None and trust:
        found = locate(str(target))
    if found is None:
        raise UserError(
            f"The corruption {target!r} is none of {', '.join(known)}{nearest(str(target), known)}; pass trust=True "
            "if it is one of your own."
        )
    arguments = {key: value for key, value in config.items() if not key.startswith("_")}
    try:
        return found(**arguments)
    except TypeError as error:
        raise UserError(f"The corruption {target!r} cannot be built: {error}.") from error
