"""The slides of a release, and the annotation file that each has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from medmdm.data.files.annotations import ANNOTATION_SUFFIXES
from medmdm.data.files.formats import may_be_dicom
from medmdm.data.files.pyramids import TIFF_SUFFIXES
from medmdm.data.files.slides import Slide, is_slide
from medmdm.data.mask_names import is_mask
from medmdm.errors import UserError, counted, nearest
from medmdm.prepare.release import Release, SourceFile


@dataclass(frozen=True)
class SlideFile:
    """A slide of a release.

    Args:
        on_disk: the file, or the folder of a DICOM slide.
        path: the same below the release's top.
        name: without suffixes.
    """

    on_disk: Path
    path: PurePosixPath
    name: str

    def open(self, mpp: float | None) -> Slide:
        """Open it.

        Args:
            mpp: µm per pixel of its finest level, if it does not say.

        Raises:
            UserError: it cannot be read, or its pixel size is not known.
        """
        Slide(self.on_disk, 1.0).close()  # it says whatever else is wrong with the file
        try:
            return Slide(self.on_disk)
        except UserError as error:
            if mpp is None:
                raise UserError(f"{self.on_disk} does not say how large its pixels are: give --slide-mpp.") from error
            return Slide(self.on_disk, mpp / 1000)


def annotated_slides(release: Release) -> tuple[list[tuple[SlideFile, SourceFile]], list[str]]:
    """Return the slides that have annotations, with them, and notices on what has no partner.

    Raises:
        UserError: one sentence: there are no slides or no annotations, or it is not clear which belong together.
    """
    slides = _slides(release)
    annotations, notices = _annotations(release, slides)
    without = [slide for name, slide in slides.items() if name not in annotations]
    if without:
        what = counted(len(without), "slide", "is", "are")
        notices.append(f"{what} left out, for want of annotations (first: {without[0].path})")
    return [(slide, annotations[name]) for name, slide in slides.items() if name in annotations], notices


def _slides(release: Release) -> dict[str, SlideFile]:
    """Return slides by name in small letters."""
    slides: dict[str, SlideFile] = {}
    for file in release.files:
        if file.on_disk is None:
            raise UserError(f"{release.source} is a zip file, from which slides cannot be read in part: unpack it.")
        if is_mask(file.path) or not (is_slide(file.on_disk) or file.suffix in TIFF_SUFFIXES):
            continue
        found = SlideFile(file.on_disk, file.path, _without_suffixes(file.path.name))
        if may_be_dicom(file.path):  # a level of the slide that is the folder
            found = SlideFile(file.on_disk.parent, file.path.parent, file.on_disk.parent.name)
        other = slides.setdefault(found.name.lower(), found)
        if other != found:
            both = f"{other.on_disk} and {found.on_disk}"
            raise UserError(f"{both} have one name, so that annotations could be of either: rename one.")
    if not slides:
        raise UserError(f"{release.source} holds no slide: give the folder of the slides and their annotations.")
    return slides


def _annotations(release: Release, slides: Mapping[str, SlideFile]) -> tuple[dict[str, SourceFile], list[str]]:
    """Return annotation files by the name of their slide, and notices."""
    annotations: dict[str, SourceFile] = {}
    lonely = []
    for file in release.files:
        if file.suffix not in ANNOTATION_SUFFIXES:
            continue
        name = next((n for n in (file.stem.lower(), _without_suffixes(file.stem).lower()) if n in slides), None)
        if name is None:
            lonely.append(file)
            continue
        other = annotations.setdefault(name, file)
        if other is not file:
            both = f"{other.shown} and {file.shown} are both of the slide {slides[name].path}"
            raise UserError(f"{both}: keep one, or put all annotations into one file.")
    if not annotations:
        first = next(iter(slides.values())).name
        raise UserError(
            f"{release.source} holds no annotations named like a slide (such as {first}.geojson or .xml): export them "
            "under the slides' names."
        )
    if not lonely:
        return annotations, []
    what, close = counted(len(lonely), "file", "is", "are"), nearest(lonely[0].stem.lower(), slides)
    return annotations, [f"{what} left out, being named like no slide (first: {lonely[0].path}{close})"]


def _without_suffixes(name: str) -> str:
    """Return ``a`` of ``a.ome.tif``."""
    stem = PurePosixPath(name).stem
    return stem[: -len(".ome")] if stem.lower().endswith(".ome") else stem
