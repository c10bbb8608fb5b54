"""Slices of volumes as entries of a data set, from a store on disk in which each volume is decoded once."""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import LoadImage, MapTransform
from monai.utils import convert_to_tensor, ensure_tuple, ensure_tuple_rep

from medmdm.data.files.detached import named_files
from medmdm.data.files.pictures import RasterReader
from medmdm.data.files.volumes import WHOLE, Slicing, Volume, lies_in_one_place, read_volume, volume_hash
from medmdm.data.lists import image_names
from medmdm.data.transforms.intensity import check_percentiles, values_at
from medmdm.data.validity import ImageGrid, check_finite, check_same_grid, turned_onto
from medmdm.errors import UserError
from medmdm.files import atomic_file, expanded, text_hash
from medmdm.intact import DamagedFileError, file_checksum, load_record, save_record, unreadable

logger = logging.getLogger(__name__)

_FORMAT = 2
_QUANTILES = 1001  # 0, 0.1, ... 100 per cent
_SAMPLE = 1_000_000  # voxels from which the threshold between background and foreground is found


@dataclass(frozen=True)
class StoredVolume:
    """A volume in the store.

    Args:
        path: array ``[slices, C, rows, columns]`` in NumPy's format, for :func:`open_slices`.
        slicing: how its slices go back into the source array.
        digest: SHA-256 of its voxels, see :func:`medmdm.data.files.volumes.volume_hash`.
        foreground: for each slice, the share of pixels that are brighter than the volume's background.
        constant: for each slice, whether all of its pixels are equal (channel by channel).
        quantiles: ``[C, 1001]``, intensities at 0, 0.1, … 100 per cent of all voxels.
        quantiles_nonzero: the same of those that are not 0.
    """

    path: Path
    slicing: Slicing
    digest: str
    foreground: tuple[float, ...]
    constant: tuple[bool, ...]
    quantiles: np.ndarray
    quantiles_nonzero: np.ndarray

    @property
    def grid(self) -> ImageGrid:
        """Where the source's voxels lie."""
        return ImageGrid(self.slicing.shape, self.slicing.affine)

    def percentile_range(self, lower: float, upper: float, nonzero: bool = False) -> list[list[float]]:
        """Return [low, high] of each channel at two percentages (in between the tenths by linear interpolation)."""
        table = self.quantiles_nonzero if nonzero else self.quantiles
        at = np.linspace(0, 100, _QUANTILES)
        return [[float(np.interp(p, at, channel)) for p in (lower, upper)] for channel in table]


class VolumeStore:
    """A folder of decoded volumes, each an uncompressed array that is mapped into memory rather than read.

    A volume is stored slice after slice along one axis, in the type that it decodes to (float64 as float32 where
    that loses nothing), under a name that is a hash of the source files' paths, sizes and times and of the axis:
    later runs and other processes find it, and a changed or replaced file, or a damaged copy, is decoded again.
    Neither the names nor the files hold anything about the patient but the voxels. Deleting the folder loses
    nothing but time.

    Args:
        folder: ``None``: ``medmdm/slices`` in the user's cache folder.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.folder = cache_folder("slices") if folder is None else expanded(folder)

    def get(self, path: str | Sequence[str], axis: str = "axial", series_uid: str | None = None) -> StoredVolume:
        """Return a volume, decoding it if it is not in the store.

        Args:
            path: what :func:`medmdm.data.read_volume` takes.
            axis: of the slices; ``"none"`` for that of whole volumes, which are stored as axial slices are.
            series_uid: the series to read where a folder holds several.

        Raises:
            UserError: the volume cannot be read, holds values that are not finite, or the folder cannot be written.
        """
        axis = "axial" if axis == WHOLE else axis
        sources = _sources(path)
        key = _key(sources, axis, series_uid)
        array_path, record_path = self.folder / f"{key}.npy", self.folder / f"{key}.json"
        # Whoever copies a file over another may give it its time of writing, but not this one.
        changed = [status.st_ctime_ns for files in sources for _, status in files]
        record = _stored(array_path, record_path, changed)
        if record is None:
            volume = read_volume(path, series_uid)
            slicing = Slicing(volume.array.shape[1:], volume.affine, axis)
            record = _describe(volume, slicing, path)
            try:
                slices = slicing.to_slices(volume.array)
                # Slopes such as 1 or 0.5 widen integers to float64, of which float32 often loses nothing.
                if slices.dtype == np.float64 and np.array_equal(narrow := slices.astype(np.float32), slices):
                    slices = narrow
                slices = np.ascontiguousarray(slices)  # so that a slice is one piece of the file
                with atomic_file(array_path) as file:
                    np.lib.format.write_array(file, slices, version=(2, 0), allow_pickle=False)
                    record["bytes"] = file.tell()
                record |= {"crc": file_checksum(array_path), "changed": changed}
                save_record(record, record_path)  # last: it says that the array is whole
            except OSError as error:
                raise UserError(
                    f"decoded volumes cannot be written to {self.folder} ({error.strerror}): free some space or choose "
                    "another folder with slice_cache."
                ) from error
        own: dict[str, Any] = {key: np.array(record[key]) for key in ("quantiles", "quantiles_nonzero")}
        own |= {key: tuple(record[key]) for key in ("foreground", "constant")}
        slicing = Slicing(record["shape"], np.array(record["affine"]), axis)
        return StoredVolume(array_path, slicing, record["digest"], **own)


def cache_folder(name: str) -> Path:
    """Return ``medmdm/<name>`` in the user's cache folder (``XDG_CACHE_HOME``, else ``~/.cache``)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medmdm" / name


@functools.lru_cache(maxsize=64)  # each holds a file open
def open_slices(path: str | os.PathLike[str]) -> np.ndarray:
    """Map a stored array ``[slices, C, rows, columns]`` into memory; nothing is read before it is indexed."""
    array: np.ndarray = np.load(path, mmap_mode="r")
    return array


def slice_entries(
    entry: Mapping[str, Any],
    store: VolumeStore,
    axis: str = "axial",
    percentiles: Sequence[float] | None = None,
    nonzero: bool = False,
) -> list[dict[str, Any]]:
    """Return one entry per slice of a volume, or one of the whole volume, for :class:`LoadSliced`.

    Args:
        entry: ``{"image": path, or list of paths for several sequences, "label": path (optional), "axis": ...,
            "series_uid": ...}``; its other keys pass to each slice.
        store: where decoded volumes go.
        axis: if the entry names none; ``"none"``, which goes before the entry's, for the whole volume.
        percentiles: percentages of the volume's intensities that become −1 and 1.
        nonzero: whether voxels of value 0 are left out of the percentiles.

    Returns:
        Entries with ``slice`` (number), ``position`` (0 for the first slice, 1 for the last), ``axis``, ``stored``
        (decoded file by key), ``volume_hash``, ``spacing`` (mm between rows, columns), ``foreground`` and ``constant``
        of the slice, and with ``intensity_range`` ([low, high] of each channel) where percentiles are given. That of
        a whole volume has neither ``slice`` nor ``position``; its ``spacing`` is of slices, rows and columns, its
        ``foreground`` and ``constant`` are lists.

    Raises:
        UserError: a file cannot be read, or the label does not lie on the image's grid.
    """
    axis = axis if axis == WHOLE else entry.get("axis", axis)
    volume = store.get(entry["image"], axis, entry.get("series_uid"))
    first = image_names(entry)[0]
    stored = {"image": str(volume.path)}
    if entry.get("label") is not None:
        label = store.get(entry["label"], axis)
        names = str(entry["label"]), f"its image {first}"
        certain = all(map(lies_in_one_place, [entry["label"], *image_names(entry)]))
        grid, _ = turned_onto(replace(label.grid, certain=certain), volume.grid, names[0])
        check_same_grid(grid, volume.grid, *names)
        # Each was cut by its own header: between two axes, at 45 degrees, rounding could decide otherwise.
        check_same_grid(label.slicing.sliced_grid, volume.slicing.sliced_grid, *names)
        stored["label"] = str(label.path)
    common: dict[str, Any] = {**entry, "image": first, "axis": axis, "stored": stored}
    common |= {"volume_hash": volume.digest, "spacing": list(volume.slicing.spacing)}
    if percentiles is not None:
        common["intensity_range"] = volume.percentile_range(*check_percentiles(percentiles), nonzero)
    if axis == WHOLE:
        of_slices = {"foreground": list(volume.foreground), "constant": list(volume.constant)}
        return [{**common, "spacing": [volume.slicing.slice_step, *volume.slicing.spacing], **of_slices}]
    last = max(1, volume.slicing.num_slices - 1)
    return [
        {
            **common,
            "slice": k,
            "position": k / last,
            "foreground": volume.foreground[k],
            "constant": volume.constant[k],
        }
        for k in range(volume.slicing.num_slices)
    ]


def is_whole(entry: Mapping[Any, Any]) -> bool:
    """Whether an entry is of a volume that is read whole."""
    return "stored" in entry and "slice" not in entry


def without_empty(entries: Sequence[Mapping[str, Any]], min_foreground: float | None) -> list[dict[str, Any]]:
    """Leave out the empty slices of a volume: those with a smaller share of foreground, and constant ones.

    Of a volume that is read whole they are left out at both ends, by its ``region``; in between they stay.

    Args:
        entries: of :func:`slice_entries`, of one volume.
        min_foreground: least share; None keeps every slice.
    """

    def filled(foreground: float, constant: bool) -> bool:
        return min_foreground is None or (foreground >= min_foreground and not constant)

    if not is_whole(entries[0]):
        return [dict(one) for one in entries if filled(one["foreground"], one["constant"])]
    (entry,) = map(dict, entries)
    shares, constant = entry["foreground"], entry["constant"]
    places = [number for number, pair in enumerate(zip(shares, constant, strict=True)) if filled(*pair)]
    if not places:
        return []
    first, end = places[0], places[-1] + 1
    if end - first < len(shares):
        entry["region"] = {"slices": [first, end], **(entry.get("region") or {})}
    return [{**entry, "foreground": shares[first:end], "constant": constant[first:end]}]


class LoadSliced(MapTransform):
    """Load a picture, or the slice of a volume that an entry of :func:`slice_volumes` names: ``[C, rows, columns]``.

    Of a volume that is read whole it is ``[C, slices, rows, columns]``. Of a slide (an entry of
    :func:`medmdm.data.tile_slides`) the crop that its ``"tile"`` names is read.

    With ``context_slices`` n the 2n + 1 slices around it become channels, for each sequence in turn; beyond the ends
    of the volume the last slice is repeated. Of a time series (``"frame"``) they are the frames of one slice.

    Args:
        keys: keys of images and labels.
        context_slices: neighbours on each side, for all keys or one number per key (0 for labels).
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
                    what = "slide" if "slide" in d else "picture"
                    raise UserError(f"{d[key]} is a {what} and has no neighbouring slices: set context_slices to 0.")
                d = d["slide"].load(d, key) if "slide" in d else {**d, key: self.load_picture(d[key])}
                continue
            slices = open_slices(stored)
            if is_whole(d):
                array = np.swapaxes(slices, 0, 1).copy()  # the map cannot be written to
            else:
                along = slices[d["slice"]] if "frame" in d else slices  # the neighbours of a frame are frames
                at = d.get("frame", d["slice"])
                near = along[np.clip(np.arange(at - context, at + context + 1), 0, len(along) - 1)]
                array = (near if "frame" in d else np.swapaxes(near, 0, 1)).reshape(-1, *slices.shape[2:])
            meta = {"filename_or_obj": str(d[key]), "original_dtype": array.dtype.name, "spacing": d["spacing"]}
            d[key] = MetaTensor(convert_to_tensor(np.ascontiguousarray(array)), meta=meta)
        return d


def _stored(array_path: Path, record_path: Path, changed: Sequence[int]) -> dict[str, Any] | None:
    """Return the record of a decoded volume, ``None`` where it is missing, damaged, or of files replaced since."""
    try:
        record = load_record(record_path)
        if record.get("changed") != changed or record.get("bytes") != array_path.stat().st_size:
            return None
        if record.get("crc") != file_checksum(array_path):
            raise DamagedFileError(f"{array_path} is damaged.")
    except FileNotFoundError:
        return None
    except DamagedFileError as error:
        logger.warning("%s The volume is decoded again.", error)
        return None
    except OSError as error:
        raise unreadable(array_path, error) from error
    return record


def _sources(path: str | Sequence[str]) -> list[list[tuple[Path, os.stat_result]]]:
    """Return the files that each sequence of a volume is read from, and what the system says of them."""
    found = []
    for name in ensure_tuple(path):
        try:
            files = sorted(Path(name).iterdir()) if Path(name).is_dir() else [Path(name)]
            # Raw data of .mhd and .nhdr headers lie beside them.
            if Path(name).suffix.lower() in (".mhd", ".nhdr"):
                files += sorted(p for p in Path(name).parent.glob(f"{Path(name).stem}.*") if p != Path(name))
                beside = (Path(name).parent / one for one in named_files(Path(name)))
                files += [p for p in beside if p not in files and p.is_file()]
            found.append([(file, file.stat()) for file in files])
        except OSError as error:
            raise UserError(f"{name} does not exist or cannot be read ({error.strerror}): check the path.") from error
    return found


def _key(sources: Sequence[Sequence[tuple[Path, os.stat_result]]], axis: str, series_uid: str | None) -> str:
    known = [[(str(file.absolute()), stat.st_size, stat.st_mtime_ns) for file, stat in files] for files in sources]
    return text_hash(json.dumps([_FORMAT, known, axis, series_uid]))[:40]


def _describe(volume: Volume, slicing: Slicing, path: str | Sequence[str]) -> dict[str, Any]:
    array = volume.array
    check_finite(array, str(path))
    slices = slicing.to_slices(array)
    foreground = np.zeros(slices.shape[:1] + slices.shape[2:], dtype=bool)
    quantiles, nonzero = [], []
    for channel in range(len(array)):
        # Sorting once gives all quantiles exactly. In the order of memory, for NIfTI lies column after column.
        ordered = np.sort(array[channel].ravel(order="K"))
        others = ordered[ordered != 0]
        quantiles.append(values_at(ordered, np.linspace(0, len(ordered) - 1, _QUANTILES)))
        others = others if len(others) else ordered
        nonzero.append(values_at(others, np.linspace(0, len(others) - 1, _QUANTILES)))
        threshold = _threshold(array[channel], quantiles[-1])
        if threshold is not None:
            foreground |= slices[:, channel] > threshold
    constant = slices.min(axis=(2, 3)) == slices.max(axis=(2, 3))
    return {
        "format": _FORMAT,
        "shape": list(slicing.shape),
        "affine": slicing.affine.tolist(),
        "digest": volume_hash(volume),
        "foreground": foreground.mean(axis=(1, 2)).tolist(),
        "constant": constant.all(axis=1).tolist(),
        "quantiles": quantiles,
        "quantiles_nonzero": nonzero,
    }


def _threshold(array: np.ndarray, quantiles: list[float]) -> float | None:
    """Return Otsu's threshold of a volume, ``None`` if it is constant; single extreme voxels do not move it."""
    from skimage.filters import threshold_otsu  # slow to import

    low, high = quantiles[5], quantiles[-6]
    if low == high:
        low, high = quantiles[0], quantiles[-1]
    if low == high:
        return None
    sample = array.ravel(order="K")[:: max(1, array.size // _SAMPLE)].clip(low, high)
    return float(low) if sample.min() == sample.max() else float(threshold_otsu(sample))
