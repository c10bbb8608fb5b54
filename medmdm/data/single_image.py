"""One image by the path of its file, as the network reads it: what programs on MONAI's transforms ask of a bundle."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from medmdm.corruption import Corruption
from medmdm.data.cases import case_names
from medmdm.data.files.formats import is_volume
from medmdm.data.lists import image_names
from medmdm.data.reading import CaseReader
from medmdm.data.selection import Selection
from medmdm.data.transforms.spatial import PadToSize, as_spacing, with_spacing
from medmdm.errors import UserError

_KEYS = ("case", "region", "axis", "series_uid", "spacing")  # what an entry of a data list says of how it is read


class ReadImaged(MapTransform):
    """Read images by the plan of a backbone: the path under a key becomes what the network sees.

    That is ``[C, H, W]`` float32 in [-1, 1] for a picture and ``[C, slices, H, W]`` for a volume, at the plan's
    spacing, padded to the network's window where it is smaller. Its metadata holds ``spatial_shape`` and
    ``original_affine`` of the file. Under ``<key>_case`` stands the :class:`medmdm.data.LoadedCase`, by which
    :class:`medmdm.segment.MaskFromLogitsd` finds back to the file's own grid.

    Args:
        keys: keys of paths.
        plan: see :class:`medmdm.data.CaseReader`.
        window: least rows and columns; of whole volumes slices, rows and columns.
        image_spacing: mm between pixels of pictures whose files do not say it.
        store: folder of decoded volumes; None for the user's cache folder.
        allow_missing_keys: don't raise if a key is missing.

    Raises:
        UserError: when called: there is no path, or the file cannot be read so; the sentence names it.
    """

    def __init__(
        self,
        keys: KeysCollection,
        plan: Mapping[str, Any],
        window: Sequence[int] | None = None,
        image_spacing: float | Sequence[float] | None = None,
        store: str | os.PathLike[str] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.reader = CaseReader(Selection(Path(), None, (), (), (), (), ()), plan, store)
        self.pad = PadToSize(window) if window else None
        self.spacing = as_spacing(image_spacing, name="image_spacing")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            case = self.reader.read(self._entry(key, d))
            images = [one.image if self.pad is None else torch.as_tensor(self.pad(one.image)) for one in case.examples]
            affine = torch.eye(4, dtype=torch.float64) if case.slicing is None else torch.as_tensor(case.slicing.affine)
            meta = {
                "filename_or_obj": image_names(case.entry)[0], "spatial_shape": case.shape, "original_affine": affine,
            }  # fmt: skip
            d[key] = MetaTensor(torch.stack(images, dim=1) if case.slices else images[0], meta=meta)
            d[f"{key}_case"] = case
        return d

    def _entry(self, key: Hashable, data: Mapping[Hashable, Any]) -> dict[str, Any]:
        path = data[key]
        if not isinstance(path, (str, os.PathLike, list)):
            raise UserError(f"{key!r} is a {type(path).__name__}, expected the path of an image.")
        names = path if isinstance(path, list) else str(path)
        entry: dict[str, Any] = {"image": names, **{k: data[k] for k in _KEYS if data.get(k) is not None}}
        entry.setdefault("case", case_names([entry], Path())[0])
        return entry if is_volume(image_names(entry)[0]) else with_spacing(entry, {"spacing": self.spacing})


class Corruptd(MapTransform):
    """Damage images as a pre-training did, at one t, the same image always alike.

    Args:
        keys: keys of images, ``[C, H, W]`` or ``[C, slices, H, W]`` in [-1, 1].
        corruption: what the network was trained on.
        timestep: t.
        seed: of the damage.
        allow_missing_keys: don't raise if a key is missing.
    """

    def __init__(
        self,
        keys: KeysCollection,
        corruption: Corruption,
        timestep: int,
        seed: int = 0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.corruption, self.timestep, self.seed = corruption, timestep, seed

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            image = torch.as_tensor(d[key])
            batch = image.movedim(1, 0) if image.ndim == 4 else image[None]
            times = torch.full((len(batch),), self.timestep, dtype=torch.long)
            # Sides that patches do not divide are prolonged by their edge, as far as the last patch reaches.
            rows, columns = batch.shape[2:]
            added = (0, -columns % self.corruption.multiple, 0, -rows % self.corruption.multiple)
            whole = torch.nn.functional.pad(batch, added, mode="replicate")
            generator = torch.Generator().manual_seed(self.seed)
            x_t = self.corruption(whole, times, generator, **self.corruption.blank(whole)).x_t[..., :rows, :columns]
            damaged = x_t.movedim(0, 1) if image.ndim == 4 else x_t[0]
            d[key] = MetaTensor(damaged, meta=d[key].meta) if isinstance(d[key], MetaTensor) else damaged
        return d
