"""Slices of volumes as entries of a data set, beside pictures."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import chain
from multiprocessing.pool import ThreadPool
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import LoadImage, MapTransform
from monai.utils import convert_to_tensor, ensure_tuple_rep
from tqdm import tqdm

from medmdm.data.files.pictures import RasterReader
from medmdm.data.files.volumes import is_volume
from medmdm.data.selection import Selection
from medmdm.data.store import StoredVolume, VolumeStore, open_slices
from medmdm.data.transforms.intensity import check_percentiles
from medmdm.data.transforms.spacing import with_spacing
from medmdm.errors import UserError

__all__ = ["LoadSliced", "slice_entries", "slice_volumes"]

_DECODERS = 4  # threads; each holds a decoded volume
_HELD_OUT_SHARE = 0.1
_MOST_HELD_OUT = 4  # volumes
_SLAB_SHARE = 0.15


def slice_volumes(
    selection: Selection,
    axis: str = "axial",
    min_foreground: float | None = 0.01,
    context_slices: int = 0,
    intensity_range: Sequence[float] | None = None,
    percentiles: Sequence[float] | None = None,
    nonzero: bool = False,
    store: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Selection:
    """Replace each volume of a selection by its slices; pictures pass, with the pixel spacing their list gives.

    Each volume is decoded at most once, into the store; see :class:`medmdm.data.VolumeStore`. Where the selection has
    no validation part, some volumes (a tenth, at most four; all of a patient's) are held out for previews; of fewer
    than five, a slab of one volume is.

    Args:
        selection: what :func:`medmdm.data.select_training_images` returned.
        axis: ``"axial"``, ``"coronal"`` or ``"sagittal"``; an entry's own ``"axis"`` goes before it.
        min_foreground: slices are left out when a smaller share of their pixels is brighter than the volume's
            background (Otsu's threshold), or when they are constant; ``None`` keeps every slice.
        context_slices: neighbours on each side that a slice is read with; they count as held out with it.
        intensity_range: the config's own; with volumes either this or percentiles must be given.
        percentiles: [lower, upper] percentages; the volume's intensities there become −1 and 1. Of pictures
            :class:`medmdm.data.PercentileRanged` notes them.
        nonzero: whether voxels of value 0 are left out of the percentiles.
        store: folder of decoded volumes, ``None`` for the user's cache folder.
        seed: chooses what is held out.
        progress: show a bar while decoding (on a terminal only).

    Raises:
        UserError: a volume cannot be read, an argument is out of range, or no slice is left.
    """
    if context_slices < 0:
        raise UserError(f"context_slices is {context_slices}: give 0 or more")
    if percentiles is not None:
        check_percentiles(percentiles)
        if intensity_range is not None:
            raise UserError("both percentiles and an intensity range (or window) are given: keep one")
    if min_foreground is not None and not 0 <= min_foreground < 1:
        raise UserError(f"min_foreground is {min_foreground}: give a share of pixels, 0 <= min_foreground < 1, or null")
    information = selection.data_list.information if selection.data_list is not None else {}
    entries = [*selection.training, *selection.validation]
    which = [i for i, entry in enumerate(entries) if isinstance(entry["image"], list) or is_volume(entry["image"])]
    if not which:
        spaced = [with_spacing(entry, information) for entry in entries]
        return _selection(selection, spaced[: len(selection.training)], spaced[len(selection.training) :], ())
    if percentiles is None and intensity_range is None:
        raise UserError(
            f"{selection.dataset_dir} holds volumes, and nothing says which of their intensities become -1 and 1: set "
            "window (CT) or percentiles (MR), as the overlays ct_slices.json and mr_slices.json do"
        )
    volumes = VolumeStore(store)
    volumes.sweep()

    def expand(i: int) -> list[dict[str, Any]]:
        return slice_entries(entries[i], volumes, axis, percentiles, nonzero)

    with ThreadPool(min(_DECODERS, os.cpu_count() or 1, len(which))) as pool:
        bar = tqdm(
            pool.imap(expand, which), total=len(which), desc="decoding volumes", disable=None if progress else True,
            leave=False,
        )  # fmt: skip
        sliced = dict(zip(which, bar, strict=True))
    kept = {i: [e for e in group if _is_worth_it(e, min_foreground)] for i, group in sliced.items()}
    all_slices, all_kept = sum(map(len, sliced.values())), sum(map(len, kept.values()))
    if not all_kept:
        raise UserError(
            f"{selection.dataset_dir}: each of the {all_slices} slices is empty by min_foreground {min_foreground}: "
            "lower it"
        )
    sentences = [
        f"{_count(len(which), 'volume')} cut into {_count(all_slices, 'slice')}, {all_slices - all_kept} of them left "
        f"out as empty; decoded volumes are kept in {volumes.folder}"
    ]
    expanded = [kept.get(i, [with_spacing(entry, information)]) for i, entry in enumerate(entries)]
    training, validation = expanded[: len(selection.training)], expanded[len(selection.training) :]
    if not selection.validation and len(which) == len(entries):
        training, validation, sentence = _hold_out_volumes(training, context_slices, seed)
        sentences.append(sentence)
    return _selection(selection, chain(*training), chain(*validation), sentences)


def slice_entries(
    entry: Mapping[str, Any],
    store: VolumeStore,
    axis: str = "axial",
    percentiles: Sequence[float] | None = None,
    nonzero: bool = False,
) -> list[dict[str, Any]]:
    """Return one entry for each slice of a volume, for :class:`LoadSliced`.

    Args:
        entry: ``{"image": path, or list of paths for several sequences, "label": path (optional), "axis": ...,
            "series_uid": ...}``; its other keys pass to each slice.
        store: where decoded volumes go.
        axis: if the entry names none.
        percentiles: percentages of the volume's intensities that become −1 and 1.
        nonzero: whether voxels of value 0 are left out of the percentiles.

    Returns:
        Entries with ``slice`` (number), ``axis``, ``stored`` (decoded file by key), ``volume_hash``, ``spacing`` (mm
        between rows, columns), ``foreground`` and ``constant`` of the slice, and with ``intensity_range`` ([low, high]
        of each channel) where percentiles are given.

    Raises:
        UserError: a file cannot be read, or the label does not lie on the image's grid.
    """
    axis = entry.get("axis", axis)
    volume = store.get(entry["image"], axis, entry.get("series_uid"))
    first = entry["image"][0] if isinstance(entry["image"], list) else entry["image"]
    stored = {"image": str(volume.path)}
    if entry.get("label") is not None:
        label = store.get(entry["label"], axis)
        _refuse_other_grid(volume, label, first, entry["label"])
        stored["label"] = str(label.path)
    common: dict[str, Any] = {
        **entry,
        "image": str(first),
        "axis": axis,
        "stored": stored,
        "volume_hash": volume.digest,
        "spacing": list(volume.slicing.spacing),
    }
    if percentiles is not None:
        common["intensity_range"] = volume.percentile_range(*check_percentiles(percentiles), nonzero)
    return [
        {**common, "slice": k, "foreground": volume.foreground[k], "constant": volume.constant[k]}
        for k in range(volume.slicing.num_slices)
    ]


class LoadSliced(MapTransform):
    """Load a picture, or the slice of a volume that an entry of :func:`slice_volumes` names: ``[C, rows, columns]``.

    With ``context_slices`` n the 2n + 1 slices around it become channels, for each sequence in turn; beyond the ends
    of the volume the last slice is repeated.

    Args:
        keys: keys of images and labels.
        context_slices: neighbours on each side, for all keys or one number a key (0 for labels).
        allow_missing_keys: don't raise if a key is missing.
    """

    def __init__(
        self, keys: KeysCollection, context_slices: int | Sequence[int] = 0, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.context_slices = ensure_tuple_rep(context_slices, len(self.keys))
        self.load_picture = LoadImage(reader=RasterReader(), ensure_channel_first=True, dtype=None)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key, context in self.key_iterator(d, self.context_slices):
            stored = d.get("stored", {}).get(key)
            if stored is None:
                if context:
                    raise UserError(f"{d[key]} is a picture and has no neighbouring slices: set context_slices to 0")
                d[key] = self.load_picture(d[key])
                continue
            slices = open_slices(stored)
            numbers = np.clip(np.arange(d["slice"] - context, d["slice"] + context + 1), 0, len(slices) - 1)
            array = np.swapaxes(slices[numbers], 0, 1).reshape(-1, *slices.shape[2:])
            meta = {"filename_or_obj": str(d[key]), "original_dtype": array.dtype.name, "spacing": d["spacing"]}
            d[key] = MetaTensor(convert_to_tensor(np.ascontiguousarray(array)), meta=meta)
        return d


def _is_worth_it(entry: Mapping[str, Any], min_foreground: float | None) -> bool:
    return min_foreground is None or (not entry["constant"] and entry["foreground"] >= min_foreground)


def _hold_out_volumes(
    groups: Sequence[list[dict[str, Any]]], context: int, seed: int
) -> tuple[list[list[dict[str, Any]]], list[list[dict[str, Any]]], str]:
    """Take some volumes, or where there are few a slab of one, out of training."""
    groups = [group for group in groups if group]
    rng = np.random.default_rng([seed, 4])
    patients = [group[0].get("patient_id", group[0]["image"]) for group in groups]
    distinct = sorted(set(patients))
    if len(distinct) >= 5:
        wanted = min(_MOST_HELD_OUT, max(1, int(len(distinct) * _HELD_OUT_SHARE)))
        chosen = {distinct[i] for i in rng.permutation(len(distinct))[:wanted]}
        training = [group for group, patient in zip(groups, patients, strict=True) if patient not in chosen]
        held = [group for group, patient in zip(groups, patients, strict=True) if patient in chosen]
        return training, held, f"{_count(len(held), 'volume')} held out for previews"
    which = int(rng.integers(len(groups)))
    group = groups[which]
    slab = max(1, round(len(group) * _SLAB_SHARE))
    first = (len(group) - slab) // 2
    bounds = group[first]["slice"], group[first + slab - 1]["slice"]
    # A slice that is read with its neighbours must not show the slab either.
    rest = [e for e in group if not bounds[0] - 2 * context <= e["slice"] <= bounds[1] + 2 * context]
    if not rest:
        return list(groups), [], "no slices are held out: there are too few"
    held_out = group[first : first + slab]
    training = [rest if i == which else other for i, other in enumerate(groups)]
    return (
        training,
        [held_out],
        (
            f"{_count(slab, 'slice')} in the middle of a volume held out for previews; their neighbours train, so the "
            "previews flatter: name validation volumes in a data list for fair ones"
        ),
    )


def _refuse_other_grid(image: StoredVolume, label: StoredVolume, image_name: str, label_name: str) -> None:
    if image.slicing.shape != label.slicing.shape:
        raise UserError(
            f"{label_name} has {'x'.join(map(str, label.slicing.shape))} voxels but {image_name} has "
            f"{'x'.join(map(str, image.slicing.shape))}: a label must lie on its image's grid"
        )
    shift = np.abs(image.slicing.affine - label.slicing.affine) @ np.array([*image.slicing.shape, 1.0])
    if shift.max() > 0.1:
        raise UserError(
            f"{label_name} lies up to {shift.max():.1f} mm from {image_name} by their affines: correct the label's "
            "header"
        )


def _selection(
    selection: Selection,
    training: Iterable[dict[str, Any]],
    validation: Iterable[dict[str, Any]],
    sentences: Sequence[str],
) -> Selection:
    return dataclasses.replace(
        selection,
        training=tuple(training),
        validation=tuple(validation),
        sentences=(*selection.sentences, *sentences),
    )


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
