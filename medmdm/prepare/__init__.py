"""Preparation of what a lab has downloaded: images, masks and a data list, as the other commands read them."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from medmdm.errors import UserError, nearest
from medmdm.files import claim, expanded

__all__ = ["KINDS", "Kind", "prepare"]


class Kind(NamedTuple):
    """One layout that can be prepared.

    Args:
        module: of this package, with ``plan(release, **options) -> Preparation``; imported when the kind is used, so
            that the command line starts fast.
        help: what SOURCE is, for the command line.
        options: what ``argparse.add_argument`` takes for each option of this kind, by name.
        zips_inside: see :func:`medmdm.prepare.release.open_release`.
    """

    module: str
    help: str
    options: Mapping[str, Mapping[str, Any]] = {}
    zips_inside: bool = False


_LABEL_TYPE: dict[str, Any] = {
    "choices": ("classes", "instances"),
    "default": "classes",
    "help": "what labels number: classes (default), or objects of one class",
}
_CLASSES: dict[str, Any] = {
    "nargs": "+",
    "metavar": "NAME=VALUES",
    "help": "names, merges and chooses classes: background=0 gland=1,2 ignore=3; VALUES are numbers, names or colours "
    "(#fa3253) of the source, or 'rest' for all others; classes are numbered as given, from 0 for background",
}
_SUBJECT: dict[str, Any] = {
    "metavar": "REGEX",
    "help": "finds the patient in an image's path, by its first group if it has one, such as '([0-9]+)_[0-9]+[.]png'; "
    "default: patients are not known",
}
KINDS = {
    "glas": Kind("glas", "GlaS: colon glands, BMP images with *_anno.bmp masks and Grade.csv", zips_inside=True),
    "monuseg": Kind("monuseg", "MoNuSeg 2018: nuclei, TIFF images with Aperio XML polygons", zips_inside=True),
    "dsb2018": Kind("dsb2018", "Data Science Bowl 2018: nuclei, one PNG mask per nucleus", zips_inside=True),
    "folder": Kind(
        "picture_folder",
        "any folder of PNG, TIFF, BMP or JPEG images, with or without masks beside them",
        {
            "label_type": _LABEL_TYPE,
            "classes": _CLASSES,
            "subject": _SUBJECT,
        },
    ),
    "coco": Kind(
        "coco",
        "images with COCO JSON files of outlines (polygons or RLE), as CVAT, Label Studio or Roboflow export them",
        {
            "label_type": _LABEL_TYPE,
            "classes": {
                **_CLASSES,
                "help": "makes classes of categories: background=rest epithelium=duct,gland ignore=artefact; 'rest' "
                "is all others, left out as background; classes are numbered as given",
            },
            "overlap": {
                "choices": ("last", "smallest", "ignore", "refuse"),
                "default": "last",
                "help": "whose the pixels are that several objects cover: of the last in the file (default), of the "
                "smallest, ignored, or refused",
            },
            "empty": {
                "choices": ("unlabelled", "background"),
                "default": "unlabelled",
                "help": "what images without annotations are: without a label (default), or all background",
            },
            "subject": _SUBJECT,
        },
    ),
    "slides": Kind(
        "slides",
        "whole-slide images with annotations of the same name: QuPath's GeoJSON or Aperio ImageScope's XML",
        {
            "mpp": {
                "type": float,
                "default": 0.5,
                "help": "micrometres per pixel of the images that are cut from slides (default 0.5, which is 20x)",
            },
            "tile": {"type": int, "default": 1024, "help": "most pixels along a side of an image (default 1024)"},
            "classes": {
                **_CLASSES,
                "help": "makes classes of the annotations' classes: background=Stroma tumor=Tumor ignore=Necrosis; "
                "'rest' is all others, 'unclassified' those without a class; classes are numbered as given",
            },
            "region": {
                "nargs": "+",
                "default": ["Region*"],
                "metavar": "NAME",
                "help": "classes of annotations in which everything is annotated, so that what nothing covers there is "
                "background (default Region*)",
            },
            "overlap": {
                "choices": ("smallest", "last", "ignore", "refuse"),
                "default": "smallest",
                "help": "whose the pixels are that annotations of several classes cover: of the smallest (default), "
                "of the last in the file, ignored, or refused",
            },
            "slide_mpp": {
                "type": float,
                "help": "micrometres per pixel of the slides' finest level, for slides that do not state it",
            },
            "subject": {
                **_SUBJECT,
                "help": "finds the patient in a slide's path, by its first group if it has one, such as "
                "'(TCGA-..-....)'; default: each slide is a patient of its own",
            },
        },
    ),
    "volumes": Kind(
        "volume_folder",
        "NIfTI, NRRD or MetaImage volumes with label volumes (images/ and labels/, imagesTr/ and labelsTr/, x_seg "
        "beside x), or folders of DICOM series",
        {
            "subject": {
                "metavar": "REGEX",
                "help": "finds the patient in a file's path, such as 'patient[0-9]+'; default: folders such as sub-* "
                "or case_*, else patients are not known",
            },
            "classes": _CLASSES,
            "test": {
                "type": float,
                "default": 0.2,
                "help": "share of the volumes for test where no split is published; 0 for none (default 0.2)",
            },
            "seed": {"type": int, "default": 0, "help": "of that split (default 0)"},
        },
    ),
}


def prepare(kind: str, source: str | os.PathLike[str], dest: str | os.PathLike[str], **options: Any) -> str:
    """Turn a published data set into images, masks and ``dataset.json``.

    Args:
        kind: a key of :data:`KINDS`.
        source: the folder or zip file as published; it is only read.
        dest: folder to write to. What an earlier run finished is kept when its source is unchanged.
        **options: of the kind.

    Returns:
        The summary table.

    Raises:
        UserError: one sentence about the file or option that is in the way, or that another process writes to
            ``dest``.
    """
    from medmdm.prepare.release import open_release
    from medmdm.prepare.writing import carry_out

    if kind not in KINDS:
        raise UserError(f"prepare does not know {kind!r}{nearest(kind, KINDS)}: use one of {', '.join(KINDS)}.")
    known = KINDS[kind].options
    for name, value in options.items():
        if name not in known:
            raise UserError(f"prepare {kind} has no option {name!r}{nearest(name, known)}: leave it out.")
        choices = known[name].get("choices", (value,))
        if value not in choices:
            raise UserError(f"{name} is {value!r}{nearest(str(value), choices)}: use {' or '.join(choices)}.")
    source, dest = expanded(source), expanded(dest)
    if not source.exists():
        raise UserError(f"{source} does not exist: give the folder or the zip file as downloaded.")
    if dest.exists() and not dest.is_dir():
        raise UserError(f"{dest} is a file: give a folder to write to.")
    if dest.resolve().is_relative_to(source.resolve()):
        raise UserError(f"DEST {dest} is inside SOURCE {source}, so a second run would read it: choose another folder.")
    claim(dest)
    layout = importlib.import_module(f"medmdm.prepare.{KINDS[kind].module}")
    with open_release(source, KINDS[kind].zips_inside) as release:
        return carry_out(kind, layout.plan(release, **options), dest)
