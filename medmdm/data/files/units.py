"""How large pixels and voxels are, in mm, whatever the unit of a file's header: the one place that knows units.

====================  ==================================================================================================
file                  what says the size
====================  ==================================================================================================
NIfTI                 ``xyzt_units``: m, mm or µm; unknown is taken as mm, as all programs do
NRRD                  ``space units`` or ``units``; mm without them
MetaImage             ``DistanceUnits``; mm without it
DICOM                 always mm
OME-TIFF              ``PhysicalSizeX`` and ``PhysicalSizeXUnit`` (µm by default)
TIFF of Aperio        ``MPP``, µm
TIFF of ImageJ        ``XResolution`` pixels in a ``unit``
other TIFF            ``XResolution`` in a ``ResolutionUnit`` (inch, cm), unless it is a customary density of screens or
                      printers (72, 96, 300 per inch, ...), which says nothing of what is in the picture
PNG, JPEG, BMP        nothing: their densities are those of screens and printers
====================  ==================================================================================================
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medmdm.errors import UserError, warn_once

# Millimetres in a unit, by how headers write it; in lower case but for the letters that mean two prefixes.
_PREFIXES = {
    "k": 1e6,
    "h": 1e5,
    "da": 1e4,
    "": 1e3,
    "d": 1e2,
    "c": 10.0,
    "m": 1.0,
    "µ": 1e-3,
    "u": 1e-3,
    "n": 1e-6,
    "p": 1e-9,
}
_WORDS = {
    "meter": 1e3, "centimeter": 10.0, "millimeter": 1.0, "micrometer": 1e-3, "nanometer": 1e-6, "picometer": 1e-9,
    "micron": 1e-3, "inch": 25.4, "inche": 25.4, "in": 25.4, "\"": 25.4, "ft": 304.8, "thou": 0.0254, "mil": 0.0254,
    "å": 1e-7, "angstrom": 1e-7, "pt": 25.4 / 72,
}  # fmt: skip
_NO_UNIT = ("", "?", "???", "none", "unknown", "pixel", "pixels", "voxel", "voxels", "reference frame", "arbitrary")
_NIFTI_UNITS = {0: 1.0, 1: 1e3, 2: 1.0, 3: 1e-3}
_LARGEST = 100.0  # mm: no voxel of an examination is larger
_HEADER_BYTES = 1 << 16  # of a text header
_DESCRIPTION, _X, _Y, _UNIT, _ORIENTATION = 270, 282, 283, 296, 274
# Pixels per inch that programs write where they know nothing.
_DENSITIES = (1, 28, 72, 90, 96, 100, 120, 144, 150, 180, 200, 240, 300, 350, 360, 400, 600, 720, 1200, 2400)


def millimetres(unit: str, where: str) -> float | None:
    """Return how many mm a unit has; ``None`` for pixels and the like.

    Args:
        unit: as a header writes it: ``"mm"``, ``"µm"``, ``"microns"``, ``"cm"``, ``"inch"``, ...
        where: whose it is, for the sentence: "x.nrrd gives the size of its voxels".

    Raises:
        UserError: the unit is not known.
    """
    text = unit.strip().strip('"').replace("\\u00B5", "µ").replace("μ", "µ").strip()
    word = text.lower().replace("metre", "meter")
    word = word.removesuffix("s") if len(word) > 3 else word
    if text.lower() in _NO_UNIT:
        return None
    if word in _WORDS:
        return _WORDS[word]
    prefix = text[:-1] if text.endswith("m") else word[:-1] if word.endswith("m") else None
    if prefix is None or prefix not in _PREFIXES:
        raise UserError(f"{where} in {unit!r}, a unit that is not known: correct its header, or give it in mm.")
    return _PREFIXES[prefix]


def nifti_affine(affine: np.ndarray, header: Mapping[str, Any], path: Path) -> np.ndarray:
    """Return the affine of a NIfTI file in mm.

    Args:
        affine: ``[4, 4]`` in the header's unit.
        header: of nibabel.
        path: for sentences.

    Raises:
        UserError: the unit is none of NIfTI's, or makes voxels larger than 100 mm.
    """
    code = int(header["xyzt_units"]) & 7 if "xyzt_units" in header else 0
    if code not in _NIFTI_UNITS:
        raise UserError(
            f"{path} gives its size in the unit {code}, which NIfTI does not have: correct xyzt_units in its header."
        )
    return _in_millimetres(np.asarray(affine, np.float64), _NIFTI_UNITS[code], path, declared=code in (1, 3))


def text_header_affine(affine: np.ndarray, path: Path) -> np.ndarray:
    """Return the affine of a NRRD or MetaImage file in mm: SimpleITK does not look at their units.

    Args:
        affine: ``[4, 4]`` in the header's unit.
        path: of the file.

    Raises:
        UserError: the unit is not known, the axes have different ones, or voxels come out larger than 100 mm.
    """
    with open(path, "rb") as file:
        text = file.read(_HEADER_BYTES).split(b"\n\n")[0].split(b"\r\n\r\n")[0]
    lines = [line.decode("utf-8", "replace") for line in text.split(b"ElementDataFile")[0].splitlines()]
    found: list[str] = []
    for line in lines:
        key, _, value = line.partition("=" if path.suffix.lower() in (".mha", ".mhd") else ":")
        if key.strip().lower() == "distanceunits":
            found = [value]
        elif key.strip().lower() in ("space units", "units"):
            found = re.findall(r'"([^"]*)"', value)
    factors = {millimetres(unit, f"{path} gives the size of its voxels") for unit in found}
    factors.discard(None)  # axes of channels have no unit
    if len(factors) > 1:
        raise UserError(f"{path} gives its axes in different units ({', '.join(found)}): save it in mm.")
    factor = next(iter(factors), None)
    return _in_millimetres(affine, 1.0 if factor is None else factor, path, declared=factor not in (None, 1.0))


def _in_millimetres(affine: np.ndarray, factor: float, path: Path, declared: bool) -> np.ndarray:
    if factor != 1.0:
        affine = np.vstack([affine[:3] * factor, affine[3:]])
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    if np.isfinite(sides).all() and sides.max() > _LARGEST:
        large = f"{path} has voxels of {'x'.join(f'{side:g}' for side in sides)} mm"
        if declared:
            raise UserError(f"{large} by the unit in its header, which cannot be: correct the header.")
        warn_once(f"{large}: is that its unit?")
    return affine


def picture_spacing(path: str | os.PathLike[str]) -> tuple[float, float] | None:
    """Return the size of a picture's pixels as its header gives it, for TIFFs: see the table above.

    Args:
        path: of a picture; only ``.tif`` and ``.tiff`` are looked into.

    Returns:
        (mm between rows, mm between columns) of the picture as it is shown; ``None`` where the header says nothing.

    Raises:
        UserError: the header gives a size in a unit that is not known, or one that is not above 0.
    """
    path = Path(path)
    if path.suffix.lower() not in (".tif", ".tiff"):
        return None
    try:
        with Image.open(path, formats=("TIFF",)) as image:
            tags = dict(image.tag_v2)
    except Exception:  # of whatever kind: decoding will say what is wrong, or finds another reader
        return None
    description = tags.get(_DESCRIPTION, "")
    text = description if isinstance(description, str) else ""
    with suppress(UnicodeError):  # Pillow decodes as Latin-1 what OME writes as UTF-8
        text = text.encode("latin-1").decode("utf-8")
    found = _ome(text, path) if "<OME" in text or "<Pixels" in text else None
    found = found or _aperio(text) or _resolution(text, tags, path)
    if found is None:
        return None
    if not all(math.isfinite(side) and side > 0 for side in found):
        raise UserError(f"{path} says in its header that its pixels are {found[0]:g} x {found[1]:g} mm: correct it.")
    return (found[1], found[0]) if tags.get(_ORIENTATION, 1) in (5, 6, 7, 8) else found


def _ome(text: str, path: Path) -> tuple[float, float] | None:
    element = re.search(r"<(?:\w+:)?Pixels\b([^>]*)>", text)
    given = dict(re.findall(r'(\w+)\s*=\s*"([^"]*)"', element[1])) if element else {}
    sides = []
    for axis in "YX":
        size, unit = given.get(f"PhysicalSize{axis}"), given.get(f"PhysicalSize{axis}Unit", "µm")
        factor = None if size is None else millimetres(_entities(unit), f"{path} gives the size of its pixels")
        sides.append(None if size is None or factor is None else _number(size) * factor)
    rows, columns = sides
    return None if columns is None else (columns if rows is None else rows, columns)


def _aperio(text: str) -> tuple[float, float] | None:
    found = re.search(r"(?:^|\|)\s*MPP\s*=\s*([^|\s]+)", text) if "Aperio" in text else None
    return None if found is None else (_number(found[1]) * 1e-3,) * 2


def _resolution(text: str, tags: Mapping[int, Any], path: Path) -> tuple[float, float] | None:
    if _X not in tags:
        return None
    columns, rows = (float(tags.get(tag, tags[_X])) for tag in (_X, _Y))
    unit = re.search(r"^unit=(.+)$", text, re.MULTILINE) if text.startswith("ImageJ") else None
    if unit is not None:
        factor = millimetres(unit[1], f"{path} gives the size of its pixels")
    else:
        factor = {2: 25.4, 3: 10.0}.get(tags.get(_UNIT, 2))
        per_inch = 0.0 if factor is None else columns * 25.4 / factor
        if any(math.isclose(per_inch, density, rel_tol=0.005) for density in _DENSITIES):
            factor = None
    if factor is None or not (columns > 0 and rows > 0):
        return None
    return factor / rows, factor / columns


def _number(text: str) -> float:
    try:
        return float(text.replace(",", "."))
    except ValueError:
        return math.nan


def _entities(text: str) -> str:
    """Undo the two ways in which XML without UTF-8 writes the letter."""
    return text.replace("&#181;", "µ").replace("&#xB5;", "µ").replace("&micro;", "µ")
