"""Labels as what a pre-training's corruption is given of its images: whole objects to hide, or where they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor

from medmdm.data.demo import demo_labels
from medmdm.data.folders import DEMO_LABELLED, demo_folder, find_images, image_files, label_files
from medmdm.data.selection import Selection
from medmdm.data.transforms.spatial import file_name, plain_tensor
from medmdm.data.validity import label_numbers
from medmdm.errors import UserError, counted, nearest

LABEL_AS = ("regions", "content")
UNKNOWN = -1  # where there is no label, and of regions where there is no object


def with_labels(selection: Selection, label_as: str | None = None) -> Selection:
    """Add to each image of a pre-training the label that its data list names, for the corruption.

    What is learnt so has seen labels: see :attr:`medmdm.data.CropDataset.labelled`. Validation and test images of the
    list may train as well (``transductive``), but never with their labels.

    Args:
        selection: what :func:`medmdm.data.select_training_images` returned.
        label_as: what the corruption is given the label as: ``"regions"`` or ``"content"``, see :func:`given_map`.
            ``None``: labels are not looked at, and the selection stays as it is.

    Returns:
        The selection, labelled entries having ``"label"`` (path) and, where labels hold classes, ``"label_classes"``
        (their numbers, and that of pixels to ignore where the list declares it).

    Raises:
        UserError: there is no data list, it does not say what labels mean, a label that it names is missing, or no
            image that trains has one.
    """
    if label_as is None:
        return selection
    if label_as not in LABEL_AS:
        raise UserError(f"label_as is {label_as!r}{nearest(label_as, LABEL_AS)}: use {' or '.join(LABEL_AS)}, or null.")
    chosen, folder = selection.data_list, selection.dataset_dir
    if chosen is None:
        raise UserError(f"{folder}: label_as {label_as!r} needs a data list, which names the labels: give one.")
    meaning = {} if selection.label_type == "instances" else {"label_classes": list(selection.declared)}
    images = find_images(folder, may_be_empty=True)
    own = demo_labels() if chosen.name == DEMO_LABELLED and folder == demo_folder() else None
    found: dict[str, list[Path | None]] = {}
    for section in ("training", "unlabeled") if selection.transductive else ("training", "unlabeled", "validation"):
        entries, labels = getattr(chosen, section), label_files(chosen, section, images, own)
        there = [path is not None for path in image_files(chosen, section, images)]
        lost = [e["label"] for e, label, is_there in zip(entries, labels, there, strict=True)
                if is_there and label is None and "label" in e]  # fmt: skip
        if lost:
            sentence = f"{chosen.title}: {len(lost)} of {len(entries)} {section} labels are not in {folder}"
            raise UserError(f"{sentence} (first: {lost[0]}): correct dataset_dir or the list, or leave label_as null.")
        found[section] = [label for label, is_there in zip(labels, there, strict=True) if is_there]
    # In the order in which `select_training_images` puts the sections together.
    training = [*found["training"], *found["unlabeled"]]
    training += [None] * (len(selection.training) - len(training))

    def added(entry: Mapping[str, Any], label: Path | None) -> dict[str, Any]:
        return dict(entry) if label is None else {**entry, "label": str(label), **meaning}

    count = sum(label is not None for label in training)
    if not count:
        raise UserError(f"{chosen.title}: no image that trains has a 'label', so leave label_as null.")
    without = len(training) - count
    said = f"the corruption is given the labels of {counted(count, 'image')}, which count as labels that were seen"
    if without:
        said += f"; {counted(without, 'image', 'has', 'have')} none and are damaged by what they show"
    validation = [] if selection.transductive else found["validation"]
    return dataclasses.replace(
        selection,
        training=tuple(map(added, selection.training, training)),
        validation=tuple(map(added, selection.validation, validation)),
        sentences=(*selection.sentences, said),
    )


def given_map(sample: Mapping[Any, Any], label_as: str) -> torch.Tensor:
    """Return what the corruption is given of a crop, ``[1, *spatial]``.

    Args:
        sample: ``"image"`` and, of a labelled image, ``"label"``: numbers of objects, as
            :class:`medmdm.data.LoadObjectsd` gives them, that went through the same transforms.
        label_as: ``"regions"``, for :class:`medmdm.corruption.RegionMasking`: the numbers (int64), −1 where there is no
            object, so that superpixels are hidden there; ``"content"``, for :class:`medmdm.corruption.ContentMasking`
            with ``content="map"``: 1 on objects and 0 elsewhere (float32).

    Returns:
        The map; −1 everywhere where there is no label.

    Raises:
        UserError: the label was not loaded, was not moved as its image was, or was interpolated.
    """
    image, label = sample["image"], sample.get("label")
    kind = torch.int64 if label_as == "regions" else torch.float32
    if label is None:
        return torch.full((1, *image.shape[1:]), UNKNOWN, dtype=kind)
    if not isinstance(label, torch.Tensor):
        raise UserError(f"{label} is not loaded: put medmdm.data.LoadObjectsd after what loads the image.")
    name = file_name(label, "the label")
    both = [one.affine for one in (image, label) if isinstance(one, MetaTensor)]
    if label.shape[1:] != image.shape[1:] or not all(torch.equal(one, both[0]) for one in both):
        raise UserError(f"{name} is not moved as its image is: give 'label' to the keys of each transform that moves.")
    numbers = torch.from_numpy(label_numbers(plain_tensor(label).numpy(), name)).to(torch.int64)
    return torch.where(numbers > 0, numbers, UNKNOWN) if label_as == "regions" else (numbers > 0).to(kind)
