"""Stain augmentation for histology: slides of other laboratories are stained more or less strongly."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from skimage.color import hed2rgb, rgb2hed

from medmdm.data.transforms.spatial import plain_tensor
from medmdm.errors import UserError

# scikit-image divides optical densities by this, so that black has the concentration 1.
_DENSITY_OF_BLACK = -math.log(1e-6)


class RandStainJitter(RandomizableTransform):
    """Scale and shift the haematoxylin, eosin and DAB parts of an RGB image (Tellez et al., IEEE TMI 37(9), 2018).

    The image is separated into stains by scikit-image (Ruifrok and Johnston 2001); each stain's concentration is
    multiplied by U(1 − sigma, 1 + sigma) and shifted by U(−sigma, sigma), in optical density (natural logarithm).

    Args:
        sigma: strength, in [0, 1); 0.05 is light, 0 changes nothing.
        prob: probability that an image is changed.
    """

    def __init__(self, sigma: float = 0.05, prob: float = 1.0) -> None:
        if not 0 <= sigma < 1:
            raise UserError(f"the stain jitter is {sigma}: give 0 <= sigma < 1 (0.05 is light).")
        RandomizableTransform.__init__(self, prob)
        self.sigma = sigma
        self.factors = np.ones(3)
        self.shifts = np.zeros(3)

    def randomize(self, data: Any | None = None) -> None:
        """Draw whether, and how, the next image is changed."""
        super().randomize(None)
        self.factors = self.R.uniform(1 - self.sigma, 1 + self.sigma, 3)
        self.shifts = self.R.uniform(-self.sigma, self.sigma, 3)

    def __call__(self, img: torch.Tensor, randomize: bool = True) -> torch.Tensor:
        """Return the changed image.

        Args:
            img: ``[3, H, W]``, RGB, float in [−1, 1].
            randomize: draw anew; False repeats the last draw.

        Raises:
            UserError: the image has not three channels.
        """
        if randomize:
            self.randomize()
        if not self._do_transform or self.sigma == 0:
            return img
        if img.ndim != 3 or img.shape[0] != 3:
            raise UserError(f"stain jitter needs RGB images, got the shape {tuple(img.shape)}: set stain_jitter to 0.")
        rgb = (np.moveaxis(plain_tensor(img).numpy(), 0, -1) + 1) / 2
        stains = rgb2hed(rgb.clip(0, 1)) * self.factors + self.shifts / _DENSITY_OF_BLACK
        changed = np.moveaxis(hed2rgb(stains), -1, 0) * 2 - 1
        return torch.as_tensor(np.ascontiguousarray(changed), dtype=img.dtype).clamp(-1, 1)


class RandStainJitterd(RandomizableTransform, MapTransform):
    """Dictionary version of :class:`RandStainJitter`; all keys are changed alike.

    Args:
        keys: keys of RGB images in [−1, 1].
        sigma: strength, in [0, 1).
        prob: probability that an item is changed.
        allow_missing_keys: don't raise if a key is missing.
    """

    def __init__(
        self, keys: KeysCollection, sigma: float = 0.05, prob: float = 1.0, allow_missing_keys: bool = False
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, 1.0)
        self.jitter = RandStainJitter(sigma, prob)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandStainJitterd:
        """Seed the transform inside as well."""
        super().set_random_state(seed, state)
        self.jitter.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        self.jitter.randomize()
        for key in self.key_iterator(d):
            d[key] = self.jitter(d[key], randomize=False)
        return d
