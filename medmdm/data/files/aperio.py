"""Aperio ImageScope annotations: polygons in XML, drawn as an instance mask."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

import numpy as np
from skimage.draw import polygon
from skimage.segmentation import relabel_sequential

from medmdm.errors import UserError, warn_once

MAX_BYTES = 256 << 20  # an annotated whole slide has tens of megabytes
_SHAPES = ("0", "1", "2", "3", "4")  # of ImageScope, see Region
MAX_INSTANCES = 65535  # what 16 bits can number


@dataclass(frozen=True)
class Region:
    """One outline.

    Args:
        identifier: its ``Id`` in the file.
        vertices: ``[n, 2]`` floats, x and y in pixels; (0, 0) is the corner of the first pixel, not its centre.
        negative: whether it is a hole (``NegativeROA="1"``).
        area: the area in pixels that the file states, ``None`` where it states none.
        layer: the name of the layer (``Annotation``) that it is in, empty where that has none.
        layer_number: of the layer, from 0 in the order of the file.
        shape: what was drawn, as ImageScope numbers it: 0 a closed line, 1 a rectangle, 2 an ellipse, 3 an arrow,
            4 a ruler; ``None`` where the file does not say.
    """

    identifier: str
    vertices: np.ndarray
    negative: bool = False
    area: float | None = None
    layer: str = ""
    layer_number: int = 0
    shape: int | None = None


@dataclass(frozen=True)
class AperioAnnotation:
    """What an annotation file holds: all layers' regions in the order of the file, and the pixel size if stated."""

    regions: tuple[Region, ...]
    microns_per_pixel: float | None = None


@dataclass(frozen=True)
class Drawing:
    """An instance mask and what became of the regions.

    Args:
        mask: ``[H, W]`` uint16; instances are 1..n in the order of the file, 0 is background.
        unfilled: regions of fewer than three vertices.
        outside: regions that cover no pixel centre of the image.
        overpainted: regions of which later ones left nothing.
        holes: negative regions.
    """

    mask: np.ndarray
    unfilled: tuple[Region, ...] = ()
    outside: tuple[Region, ...] = ()
    overpainted: tuple[Region, ...] = ()
    holes: tuple[Region, ...] = ()

    @property
    def instances(self) -> int:
        return int(self.mask.max(initial=0))


def read_aperio(path: str | os.PathLike[str]) -> AperioAnnotation:
    """Read an Aperio XML file.

    The XML declaration may be missing. Document types and entities are refused, so that a small file cannot grow in
    memory or read others.

    Args:
        path: the file, 256 MiB at most.

    Raises:
        UserError: the file is missing, too large, truncated, not XML, not Aperio's, or has a vertex without numbers.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UserError(f"{path} has {size:,} bytes; annotation files of more than {MAX_BYTES:,} are refused.")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the file.") from error
    if not content.strip():
        raise UserError(f"{path} is an empty annotation file: replace it or remove it.")
    handler = _Handler(path)
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = handler.start
    parser.EndElementHandler = handler.end
    parser.StartDoctypeDeclHandler = handler.refuse
    parser.EntityDeclHandler = handler.refuse
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        raise UserError(f"{path} is truncated or no XML ({error}): replace it or remove it.") from error
    except (LookupError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is in an encoding that is not read ({error}): save it as UTF-8.") from error
    return AperioAnnotation(tuple(handler.regions), handler.microns_per_pixel)


def draw_regions(regions: Sequence[Region], shape: tuple[int, ...]) -> Drawing:
    """Fill the regions one after the other: later ones win, negative ones erase.

    A pixel belongs to a region when its centre, (column + 0.5, row + 0.5), is inside the outline, so an outline around
    whole pixels fills exactly these and the filled area is on average the outline's. Vertices may lie outside the
    image. What is left of the regions is numbered 1..n in their order.

    Args:
        regions: as read by :func:`read_aperio`.
        shape: (rows, columns) of the image.

    Raises:
        UserError: there are more regions than 16 bits can number.
    """
    if len(regions) > MAX_INSTANCES:
        raise UserError(f"{len(regions)} regions are more than a 16-bit mask can number ({MAX_INSTANCES}).")
    mask = np.zeros(shape, np.uint16)
    unfilled, outside, drawn = [], [], {}
    for number, region in enumerate(regions, 1):
        if len(region.vertices) < 3:
            unfilled.append(region)
            continue
        rows, columns = polygon(region.vertices[:, 1] - 0.5, region.vertices[:, 0] - 0.5, shape)
        mask[rows, columns] = 0 if region.negative else number
        if not rows.size:
            outside.append(region)
        elif not region.negative:
            drawn[number] = region
    left = set(np.unique(mask).tolist())
    return Drawing(
        mask=relabel_sequential(mask)[0].astype(np.uint16),
        unfilled=tuple(unfilled),
        outside=tuple(outside),
        overpainted=tuple(region for number, region in drawn.items() if number not in left),
        holes=tuple(region for region in regions if region.negative),
    )


@dataclass
class _Handler:
    """Collects regions while the XML is parsed."""

    path: Path
    regions: list[Region] = field(default_factory=list)
    microns_per_pixel: float | None = None
    _depth: int = 0
    _layer: str = ""
    _layers: int = 0
    _region: dict[str, str] | None = None
    _vertices: list[tuple[float, float]] = field(default_factory=list)

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if self._depth == 0 and tag != "Annotations":
            raise UserError(
                f"{self.path} is not an Aperio annotation file: its outermost element is {tag[:40]!r}, "
                "not 'Annotations'."
            )
        self._depth += 1
        if self._depth == 1:
            size = attributes.get("MicronsPerPixel", "")
            self.microns_per_pixel = _positive(size)
            if self.microns_per_pixel is None and size.strip(" 0.,"):
                warn_once(f"{self.path.name} gives MicronsPerPixel as {size!r}, which is no size of pixels")
        elif tag == "Annotation":
            self._layer, self._layers = attributes.get("Name", "").strip(), self._layers + 1
        elif tag == "Region":
            self._region, self._vertices = attributes, []
        elif tag == "Vertex" and self._region is not None:
            self._vertices.append(self._vertex(attributes))

    def end(self, tag: str) -> None:
        self._depth -= 1
        if tag == "Region" and self._region is not None:
            self.regions.append(
                Region(
                    identifier=self._region.get("Id", "?"),
                    vertices=np.array(self._vertices, float).reshape(-1, 2),
                    negative=self._region.get("NegativeROA", "0").strip() == "1",
                    area=_positive(self._region.get("Area")),
                    layer=self._layer,
                    layer_number=max(0, self._layers - 1),
                    shape=int(shape) if (shape := self._region.get("Type", "").strip()) in _SHAPES else None,
                )
            )
            self._region = None

    def refuse(self, *_: object) -> None:
        raise UserError(
            f"{self.path} declares a document type or entities, which annotation files do not need and attacks use: "
            "it is not read."
        )

    def _vertex(self, attributes: dict[str, str]) -> tuple[float, float]:
        try:
            x, y = float(attributes["X"]), float(attributes["Y"])
        except (KeyError, ValueError):
            x = y = math.nan
        # Written so that NaN fails too; ten million pixels are beyond any slide, so such a number is damaged.
        if not (abs(x) < 1e7 and abs(y) < 1e7):
            identifier = (self._region or {}).get("Id", "?")
            raise UserError(
                f"{self.path}: region {identifier} has a vertex with X={attributes.get('X')!r} and "
                f"Y={attributes.get('Y')!r}: both must be pixel coordinates."
            )
        return x, y


def _positive(text: str | None) -> float | None:
    try:
        value = float((text or "").replace(",", "."))  # as locales have it
    except ValueError:
        return None
    return value if 0 < value < math.inf else None
