"""From logits to the mask on the file's grid, as a transform: what programs on MONAI's transforms ask of a bundle."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

from medmdm.errors import UserError
from medmdm.heads.predictor import inside, on_file_grid
from medmdm.segment.postprocessing import Postprocessing, masks_alone


class MaskFromLogitsd(MapTransform):
    """Turn a network's logits into class numbers on the grid of the file that they were read from.

    Args:
        keys: keys of logits, ``[K, H, W]`` or ``[K, slices, H, W]``; ``[1, *spatial]`` uint8 takes their place.
        postprocess: probabilities -> masks.
        image_key: under which :class:`medmdm.data.ReadImaged` put the image.
        allow_missing_keys: don't raise if a key is missing.

    Raises:
        UserError: when called: the image was not read by ``ReadImaged``.
    """

    def __init__(
        self,
        keys: KeysCollection,
        postprocess: Postprocessing,
        image_key: str = "image",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.postprocess, self.image_key = masks_alone(postprocess), image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        case = d.get(f"{self.image_key}_case")
        for key in self.key_iterator(d):
            if case is None:
                raise UserError(f"{self.image_key!r} was not read by medmdm.data.ReadImaged: put it before.")
            logits = torch.as_tensor(d[key]).as_subclass(Tensor).float().cpu()

            def probabilities(number: int, image: Tensor, logits: Tensor = logits) -> Tensor:
                own = logits[:, number] if case.slices else logits
                return own[inside(image.shape[1:], own.shape[1:])].softmax(0)

            mask = self.postprocess(on_file_grid(case, probabilities), case.spacing)["mask"]
            assert mask is not None
            meta = {k: v for k, v in getattr(d[self.image_key], "meta", {}).items() if k != "affine"}
            d[key] = MetaTensor(torch.from_numpy(mask)[None], affine=meta.get("original_affine"), meta=meta)
        return d
