"""What was chosen of a data set; the choice of images to pre-train on, of which volumes become their slices."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from medmdm.data.files.formats import is_volume
from medmdm.data.files.volumes import WHOLE
from medmdm.data.folders import choose_data_list, find_images, image_files
from medmdm.data.lists import (
    IMAGE_SECTIONS,
    DataList,
    class_numbers,
    image_name,
    image_names,
    label_names,
    label_type,
)
from medmdm.data.patients import hold_out_volumes
from medmdm.data.slices import VolumeStore, slice_entries, without_empty
from medmdm.data.splits import subset
from medmdm.data.threads import decoding_threads
from medmdm.data.time_series import TIME, frame_entries
from medmdm.data.transforms.intensity import check_percentiles
from medmdm.data.transforms.spatial import with_spacing
from medmdm.errors import UserError, counted
from medmdm.files import sweep_temporaries
from medmdm.labels import IGNORE
from medmdm.progress import followed

logger = logging.getLogger(__name__)

_ENTRY_KEYS = ("region", "patient_id", "axis", "series_uid", "spacing", "magnification")
_STALE_SECONDS = 24 * 3600  # decoded volumes that killed runs left half-written
_SHOWN = {WHOLE: " at the ends", TIME: ", counting each of their frames"}
_DECODERS = 4  # threads; each holds a decoded volume


@dataclass(frozen=True)
class Selection:
    """The images of one pre-training, or the cases to learn a segmentation from and to test it on.

    An entry of a pre-training is ``{"image": path, "region": ..., "patient_id": ...}``, with the keys of the list's
    entry that say how to read it. A case is ``{"case": file-name-safe id, "name": of the image in the list, "image":
    path (a list of paths for several sequences), "label": path, "columns": {...}}``, with ``region``, ``patient_id``,
    ``axis`` and ``series_uid`` where the list gives them, and for pictures ``spacing`` ([rows, columns] in mm) where
    the entry or the list does.

    Args:
        dataset_dir: folder they are in.
        data_list: the list that was used; ``None`` for a folder of images without one.
        training: entries to learn from.
        validation: entries held out by the list, to choose settings by.
        test: entries to report on; of a pre-training those whose images were found, which train only if it is
            transductive.
        sentences: what to tell the user, one thing each.
        warnings: what the user should act on.
        transductive: whether the list's validation and test images train too.
        unlabeled: cases without a label, for methods that can use them; a pre-training has them in ``training``.
    """

    dataset_dir: Path
    data_list: DataList | None
    # Entries hold patient ids, so they stay out of what is printed.
    training: tuple[dict[str, Any], ...] = field(repr=False)
    validation: tuple[dict[str, Any], ...] = field(repr=False)
    test: tuple[dict[str, Any], ...] = field(repr=False)
    sentences: tuple[str, ...]
    warnings: tuple[str, ...]
    transductive: bool = False
    unlabeled: tuple[dict[str, Any], ...] = field(default=(), repr=False)

    def announce(self) -> None:
        """Log what was chosen, and what the user should act on."""
        for sentence in self.sentences:
            logger.info(sentence)
        for warning in self.warnings:
            logger.warning(warning)

    @property
    def label_type(self) -> str:
        """``"classes"``, or ``"instances"`` where labels number objects of one class."""
        with _titled(self.data_list):
            return label_type(self._information)

    @property
    def classes(self) -> tuple[int, ...]:
        """The class numbers that labels may have, rising; 0 and 1 for instances.

        Raises:
            UserError: the list declares none, or one that 8 bits cannot hold beside :attr:`ignore`.
        """
        with _titled(self.data_list):
            if label_type(self._information) == "instances":
                return 0, 1
            names = label_names(self._information)
            if not names:
                raise UserError(
                    "the list does not declare 'labels', so the classes are not known: add "
                    '"labels": {"background": 0, ...} (or "label_type": "instances" if labels number objects).'
                )
            return class_numbers(names)

    @property
    def declared(self) -> tuple[int, ...]:
        """The :attr:`classes`, and the number of pixels to ignore where the list declares it."""
        ignored = self.label_type != "instances" and IGNORE in label_names(self._information)
        return (*self.classes, IGNORE) if ignored else self.classes

    @property
    def num_classes(self) -> int:
        """One more than the largest class number, so that class numbers are channels of a prediction."""
        return self.classes[-1] + 1

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class number from 0 to ``num_classes`` − 1, ``"class 3"`` where 3 is not declared."""
        names = label_names(self._information)
        if self.label_type == "instances":
            objects = [name for number, name in sorted(names.items()) if number]
            return names.get(0, "background"), objects[0] if len(objects) == 1 else "object"
        return tuple(names.get(number, f"class {number}") for number in range(self.num_classes))

    @property
    def ignore(self) -> int:
        """The number of pixels that losses and metrics leave out."""
        return IGNORE

    def subset(self, n: int, rule: str = "paper", seed: int = 0) -> Selection:
        """Keep ``n`` training cases, the same that ``python -m medmdm split --subset`` keeps.

        Args:
            n: how many.
            rule: ``"paper"`` or ``"seeded"``; see :func:`medmdm.data.subset`.
            seed: of the draw.

        Raises:
            UserError: more cases than there are, or an unknown rule.
        """
        # By the names in the list: where the folder lies must not change a draw.
        drawn = subset([{**entry, "image": entry["name"], "_entry": entry} for entry in self.training], n, rule, seed)
        return dataclasses.replace(self, training=tuple(entry["_entry"] for entry in drawn))

    @property
    def _information(self) -> Mapping[str, Any]:
        return {} if self.data_list is None else self.data_list.information


def select_training_images(
    dataset_dir: str | os.PathLike[str],
    data_list: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    transductive: bool = False,
) -> Selection:
    """Choose the images to pre-train on.

    Where there is a data list only its training images, and those of ``unlabeled``, are used. It is the one given; else
    ``dataset.json`` or ``datalist.json`` in the folder; else one that comes with medmdm and matches the folder's files
    (see :func:`medmdm.data.find_data_list`). Without a list all images of the folder are used, masks left out.

    Args:
        dataset_dir: folder, or ``"demo"`` for the images in scikit-image's wheel (``"./demo"`` for a folder so named).
        data_list: JSON file, name of a list that comes with medmdm, or its content; ``None``: look for one;
            ``"none"``: use all images whatever lists there are.
        transductive: train on the validation and test images of the list as well.

    Raises:
        UserError: the folder or the list is missing or wrong, or images that it names are missing.
    """
    folder, chosen, warnings = choose_data_list(dataset_dir, data_list)
    images = find_images(folder, may_be_empty=chosen is not None)  # the list may name images that look like masks
    masks = counted(len(images.masks), "mask")
    if chosen is None:
        volumes = sum(is_volume(path) for path in images.images)
        found = [counted(len(images.images) - volumes, "image")] if volumes < len(images.images) else []
        found += [counted(volumes, "volume")] if volumes else []
        sentences = [f"{folder}: {', '.join(found)}, {images.masks_left_out}"]
        if transductive:
            sentences.append("without a data list all images train, so transductive changes nothing")
        every = tuple({"image": str(path)} for path in images.images)
        return Selection(folder, None, every, (), (), tuple(sentences), tuple(warnings), transductive)
    kept = {}
    for section in IMAGE_SECTIONS:
        entries, paths = getattr(chosen, section), image_files(chosen, section, images)
        if section != "test":  # test images are often kept elsewhere, or back
            missing = [image_name(entry) for entry, path in zip(entries, paths, strict=True) if path is None]
            note_missing(chosen, section, missing, len(entries), folder, warnings)
        kept[section] = [_entry(entry, path) for entry, path in zip(entries, paths, strict=True) if path is not None]
    training, validation, test, unlabeled = (tuple(kept[section]) for section in IMAGE_SECTIONS)
    counts = [counted(len(kept[section]), f"{section} image") for section in IMAGE_SECTIONS]
    training = (*training, *unlabeled)
    if not training and not transductive:
        raise UserError(f"{chosen.title}: no image to pre-train on: add 'training' or 'unlabeled' ones.")
    listed = {name for entry in (*training, *validation, *test) for name in image_names(entry)}
    unlisted = counted(sum(str(path) not in listed for path in images.images), "image")
    held_out = f"{counts[1]} held out, {counts[2]} left out"
    if transductive:
        held_out = f"transductive: {counts[1]} and {counts[2]} of the list train too"
        training, validation = (*training, *validation, *test), ()
    left_out = f"{masks} and {unlisted} that the list does not name left out"
    sentences = [
        f"{folder}: data list {chosen.title}, {' and '.join([counts[0], *counts[3:] * bool(unlabeled)])}",
        held_out,
        left_out,
    ]
    return Selection(folder, chosen, training, validation, test, tuple(sentences), tuple(warnings), transductive)


def note_missing(
    data_list: DataList, section: str, missing: Sequence[str], total: int, folder: Path, warnings: list[str]
) -> None:
    """Refuse a list of which images are missing, or add to ``warnings``: one that comes with medmdm may lack some.

    So may the user's own lack all of its test images, which are often kept elsewhere, or back.
    """
    if not missing:
        return
    sentence = f"{data_list.title}: {len(missing)} of {total} {section} images are not in {folder}"
    some = len(missing) < total
    if not (data_list.shipped if some else section == "test"):
        raise UserError(f"{sentence} (first: {missing[0]}): correct dataset_dir or the list.")
    warnings.append(f"{sentence} (first: {missing[0]}); {'the others are used' if some else 'there is no test'}")


@contextmanager
def _titled(data_list: DataList | None) -> Iterator[None]:
    """Put the list's title before a sentence about its content."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{'no data list' if data_list is None else data_list.title}: {error}") from error


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
    """Replace each volume of a selection by its slices, or by one entry of the whole volume (``axis`` ``"none"``).

    Pictures pass, with the pixel spacing their list gives, but not beside whole volumes.

    Slides pass as :func:`medmdm.data.tile_slides` left them.

    Each volume is decoded at most once, into the store; see :class:`medmdm.data.VolumeStore`. Where the selection has
    no validation part, some volumes (a tenth, at most four; all of a patient's) are held out for previews; of fewer
    than five, a slab of one volume is; of whole volumes :func:`medmdm.data.hold_out` then holds out strips.

    Args:
        selection: what :func:`medmdm.data.select_training_images` returned.
        axis: ``"axial"``, ``"coronal"`` or ``"sagittal"``; an entry's own ``"axis"`` goes before it. ``"none"``:
            volumes are read whole, whatever entries say. ``"time"``: of 4-D NIfTI files each frame of each slice
            (along the entry's axis, else axial) is one, and its neighbours are frames.
        min_foreground: slices are left out when a smaller share of their pixels is brighter than the volume's
            background (Otsu's threshold), or when they are constant; ``None`` keeps every slice. Of whole volumes they
            are left out at both ends only.
        context_slices: neighbours on each side that a slice is read with; they count as held out with it.
        intensity_range: the config's own; with volumes either this or percentiles must be given.
        percentiles: [lower, upper] percentages; the volume's intensities there become −1 and 1. Of pictures
            :class:`medmdm.data.PercentileRanged` notes them.
        nonzero: whether voxels of value 0 are left out of the percentiles.
        store: folder of decoded volumes, ``None`` for the user's cache folder.
        seed: chooses what is held out.
        progress: log how far the decoding has come.

    Raises:
        UserError: a volume cannot be read, an argument is out of range, or no slice is left.
    """
    if context_slices < 0:
        raise UserError(f"context_slices is {context_slices}: give 0 or more.")
    if percentiles is not None:
        check_percentiles(percentiles)
        if intensity_range is not None:
            raise UserError("both percentiles and an intensity range (or window) are given: keep one.")
    if min_foreground is not None and not 0 <= min_foreground < 1:
        raise UserError(f"min_foreground is {min_foreground}: give a share, 0 <= min_foreground < 1, or null.")
    information = selection.data_list.information if selection.data_list is not None else {}
    entries, count = [*selection.training, *selection.validation], len(selection.training)
    volume = [(isinstance(e["image"], list) or is_volume(e["image"])) and "slide" not in e for e in entries]
    which = [i for i, _ in enumerate(entries) if volume[i]]
    if axis == WHOLE and context_slices:
        raise UserError(
            f"context_slices is {context_slices}, but slice_axis {WHOLE!r} reads volumes whole: set it to 0."
        )
    if axis in (WHOLE, TIME) and not all(volume):
        name = image_name(entries[volume.index(False)])
        raise UserError(f"slice_axis {axis!r} reads volumes, but {name} is none: leave it out.")
    if not which:
        spaced = tuple(with_spacing(entry, information) for entry in entries)
        return dataclasses.replace(selection, training=spaced[:count], validation=spaced[count:])
    require_scaling(selection, percentiles, intensity_range)
    volumes = VolumeStore(store)
    sweep_temporaries(volumes.folder, _STALE_SECONDS)
    with decoding_threads(min(_DECODERS, len(which))) as pool:
        cut = frame_entries if axis == TIME else functools.partial(slice_entries, axis=axis)
        groups = pool.imap(lambda i: cut(entries[i], volumes, percentiles=percentiles, nonzero=nonzero), which)
        sliced = dict(zip(which, followed(groups, "decoding volumes", len(which), progress), strict=True))
    kept = {i: without_empty(group, min_foreground) for i, group in sliced.items()}
    all_slices, all_kept = (sum(np.size(e["foreground"]) for e in chain(*groups.values())) for groups in (sliced, kept))
    if not all_kept:
        problem = f"each of the {all_slices} slices is empty by min_foreground {min_foreground}: lower it."
        raise UserError(f"{selection.dataset_dir}: {problem}")
    sentences = [
        *selection.sentences,
        f"{counted(len(which), 'volume')} {'read whole, of' if axis == WHOLE else 'cut into'} "
        f"{counted(all_slices, 'slice')}, {all_slices - all_kept} of them left out as empty"
        f"{_SHOWN.get(axis, '')}; decoded volumes are kept in {volumes.folder}",
    ]
    expanded = [kept.get(i, [with_spacing(entry, information)]) for i, entry in enumerate(entries)]
    training, validation = expanded[:count], expanded[count:]
    if not selection.validation and len(which) == len(entries):
        training, validation, sentence = hold_out_volumes(training, 0 if axis == TIME else context_slices, seed)
        sentences.append(sentence)
    train, held = tuple(chain(*training)), tuple(chain(*validation))
    return dataclasses.replace(selection, training=train, validation=held, sentences=tuple(sentences))


def require_scaling(
    selection: Selection, percentiles: Sequence[float] | None, intensity_range: Sequence[float] | None
) -> None:
    """Refuse volumes of which nothing says how their intensities are scaled.

    Raises:
        UserError: both arguments are None.
    """
    if percentiles is None and intensity_range is None:
        raise UserError(
            f"{selection.dataset_dir} holds volumes, and nothing says which of their intensities become -1 and 1: set "
            "window (CT) or percentiles (MR), as the overlays ct_slices.json and mr_slices.json do."
        )


def _entry(entry: Mapping[str, Any], path: Path | list[Path]) -> dict[str, Any]:
    image = [str(one) for one in path] if isinstance(path, list) else str(path)
    return {"image": image, **{key: entry[key] for key in _ENTRY_KEYS if key in entry}}
