"""Annotations of slides as QuPath (GeoJSON) and Aperio ImageScope (XML) export them."""

from __future__ import annotations

import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medmdm.data.files.aperio import MAX_BYTES, Region, read_aperio
from medmdm.data.files.outlines import Outline, Ring, open_ring
from medmdm.errors import UserError, counted
from medmdm.files import text_of

ANNOTATION_SUFFIXES = (".geojson", ".json", ".xml")
_ELLIPSE, _ARROW, _RULER = 2, 3, 4  # ImageScope's numbers of shapes
_AREAS = ("annotation", "detection", "cell")  # of QuPath's objects
_OTHERS = ("tile", "tma_core", "root")
_FARTHEST = 1e7  # pixels, beyond any slide


def read_annotations(path: str | os.PathLike[str]) -> tuple[list[Outline], list[str]]:
    """Read the annotations of a slide.

    - QuPath's GeoJSON: a feature, an array or a collection of them; polygons with holes; the class as today's and
      earlier versions write it (derived classes with colons: ``"Tumor: Positive"``). Of cells the cell, not its
      nucleus. Tiles, cores of tissue arrays and points are left out.
    - Aperio ImageScope's XML: the layer's name is the class, and negative regions are holes in all regions of their
      layer. Arrows and rulers are left out.

    Args:
        path: ``.geojson``, ``.json`` or ``.xml``.

    Returns:
        The annotations in the order of the file, and notices on what was left out.

    Raises:
        UserError: one sentence: the file cannot be read, or it holds what is not understood, such as an open line.

    Source: https://qupath.readthedocs.io/en/stable/docs/advanced/exporting_annotations.html and RFC 7946.
    """
    path = Path(path)
    return _read_imagescope(path) if path.suffix.lower() == ".xml" else _read_qupath(path)


def _read_imagescope(path: Path) -> tuple[list[Outline], list[str]]:
    holes: dict[int, list[Region]] = defaultdict(list)
    outer: list[tuple[Region, str]] = []
    without = 0
    for region in read_aperio(path).regions:
        title = f"{path}: region {region.identifier}"
        if region.shape in (_ARROW, _RULER):
            without += 1
        elif region.shape == _ELLIPSE:
            raise UserError(f"{title} is an ellipse, of which the file has only a box: draw it as a closed line.")
        elif len(region.vertices) < 3:
            vertices = f"{len(region.vertices)} vertices"
            raise UserError(f"{title} has {vertices}, which enclose no area: close it or remove it.")
        elif region.negative:
            holes[region.layer_number].append(region)
        else:
            outer.append((region, title))
    found = []
    for region, title in outer:
        rings = [region.vertices, *(hole.vertices for hole in holes[region.layer_number])]
        found.append(Outline(region.layer, title, (tuple(map(open_ring, rings)),)))
    return found, [f"{path.name}: {counted(without, 'arrow or ruler', 'is', 'are')} left out"] if without else []


def _read_qupath(path: Path) -> tuple[list[Outline], list[str]]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(
                f"{path} has {path.stat().st_size:,} bytes; annotation files of more than {MAX_BYTES:,} are refused: "
                "export annotations without detections, or a part of them."
            )
        content = json.loads(text_of(path.read_bytes()))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the file.") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is truncated or no JSON ({error}): export it again.") from error
    kind = content.get("type") if isinstance(content, Mapping) else None
    features = {"FeatureCollection": lambda: content.get("features"), "Feature": lambda: [content]}
    listed = content if isinstance(content, list) else features.get(str(kind), lambda: None)()
    if not isinstance(listed, list):
        raise UserError(f"{path} is no GeoJSON of features: export the annotations from QuPath as GeoJSON.")
    found, left_out = [], Counter[str]()
    for number, feature in enumerate(listed, 1):
        outline = _feature(feature, f"{path}: annotation {number}")
        if isinstance(outline, Outline):
            found.append(outline)
        else:
            left_out[outline] += 1
    kinds = ", ".join(f"{count} {what}" for what, count in left_out.items())
    return found, [f"{path.name}: left out as no annotated areas: {kinds}"] if kinds else []


def _feature(feature: Any, title: str) -> Outline | str:
    """Return an annotation, or what kind of thing it is that has no area of its own."""
    if not isinstance(feature, Mapping) or feature.get("type") != "Feature":
        raise UserError(f"{title} is no GeoJSON feature: export the annotations from QuPath as GeoJSON.")
    properties = feature.get("properties") or {}
    geometry = feature.get("geometry")
    if not isinstance(properties, Mapping) or not isinstance(geometry, Mapping):
        raise UserError(f"{title} has no geometry or no properties as QuPath writes them: export it again.")
    name = _class_name(properties.get("classification"), title)
    title += f" ({name})" if name else ""
    what = str(properties.get("objectType", properties.get("object_type", "annotation"))).lower()
    if what in _OTHERS:
        return what
    if what not in _AREAS:
        raise UserError(f"{title} is of the type {what!r}, which is not understood: export annotations.")
    plane = geometry.get("plane") or {}
    if not isinstance(plane, Mapping):
        raise UserError(f"{title} is on a plane that is not as QuPath writes it: export it again.")
    if any(plane.get(axis) for axis in ("z", "t")):
        raise UserError(f"{title} is on another plane (z or t) than the first, which is not read: export the first.")
    shape, coordinates = geometry.get("type"), geometry.get("coordinates")
    if shape in ("Point", "MultiPoint"):
        return "point"
    if shape not in ("Polygon", "MultiPolygon"):
        raise UserError(f"{title} is a {shape}, which encloses no area: draw it as a polygon or remove it.")
    polygons = [coordinates] if shape == "Polygon" else coordinates
    if not isinstance(polygons, list) or not polygons or not all(isinstance(one, list) and one for one in polygons):
        raise UserError(f"{title} is a {shape} without coordinates: export it again.")
    return Outline(name, title, tuple(tuple(_ring(ring, title) for ring in rings) for rings in polygons))


def _class_name(classification: Any, title: str) -> str:
    if classification is None:
        return ""
    if isinstance(classification, Mapping):
        names = classification.get("names") or classification.get("name") or ""
        parts = [names] if isinstance(names, str) else names
        texts = isinstance(parts, Sequence) and all(isinstance(part, str) for part in parts)
        if texts and "".join(parts).isprintable():  # half a surrogate, which no file can hold, is not
            return ": ".join(parts).strip()
    raise UserError(f"{title} has the classification {classification!r}, which is not as QuPath writes it.")


def _ring(positions: Any, title: str) -> Ring:
    try:
        vertices = np.array([(_number(x), _number(y)) for x, y, *_ in positions])
    except (TypeError, ValueError, OverflowError):
        vertices = np.full((1, 2), math.nan)
    if not (np.abs(vertices) < _FARTHEST).all():  # written so that NaN fails too
        raise UserError(f"{title} has coordinates that are no pixels (x, y): export it again.")
    if len(vertices) < 4 or (vertices[0] != vertices[-1]).any():
        raise UserError(f"{title} is an open polygon, whose last point is not its first: close it or remove it.")
    return open_ring(vertices)


def _number(value: Any) -> float:
    if not isinstance(value, (int, float)):  # not a text that reads like one
        raise TypeError(value)
    return float(value)
