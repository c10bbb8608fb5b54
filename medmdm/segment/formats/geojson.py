"""GeoJSON as QuPath reads it: outlines of classes and of objects on the image, with what is measured of them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from medmdm.data.files.slides import is_slide
from medmdm.data.tracing import outlines
from medmdm.errors import UserError, need
from medmdm.files import atomic_write
from medmdm.segment.formats.base import COLOURS, CaseFormat, Segmented, only_pictures
from medmdm.segment.formats.measurements import qupath_measurements

_NAMES = uuid.UUID("6c2a4ef4-6bd4-5ac5-a1a1-6d2f7e3b8a55")  # of the ids, which equal content has in common


@dataclass(frozen=True)
class GeoJSON(CaseFormat):
    """``predictions/<case>.geojson``: an annotation for each class and, where instances are found, a detection each.

    Coordinates are pixels of the image's file (of a case that is a region, of the whole picture), x to the right and y
    down, (0, 0) the corner of the first pixel. Not simplified, polygons run along the edges of the pixels and
    rasterising gives the mask back. The mean probability is among the measurements where another format has the
    probabilities kept. Of slides only classes are written, traced on a coarser level of the mask
    (:class:`medmdm.segment.formats.base.Traced`) in pixels of the slide's finest level. Needs shapely
    (``pip install 'medmdm[interop]'``).

    Args:
        simplify: by how many pixels (of slides, of those that were traced) an outline may leave the pixels' edges, to
            have fewer vertices (:func:`shapely.simplify`). Objects that touch may then overlap or part by as much.
        annotations: write the outlines of classes.
        detections: write the outlines of instances.

    Raises:
        UserError: ``simplify`` is below 0, nothing is to be written, or shapely is missing.

    Source:
        https://qupath.readthedocs.io/en/stable/docs/advanced/exporting_annotations.html
    """

    simplify: float = 0.0
    annotations: bool = True
    detections: bool = True
    for_slides: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.simplify >= 0:
            raise UserError(f"GeoJSON: simplify is {self.simplify!r}: give a number of pixels from 0.")
        if not (self.annotations or self.detections):
            raise UserError("GeoJSON: annotations and detections are both false: nothing would be written.")
        need("GeoJSON", "shapely", "interop")

    def check(self, entries: Sequence[Mapping[str, Any]], class_names: Sequence[str]) -> None:
        pictures = []
        for entry in entries:
            if not (isinstance(entry["image"], str) and is_slide(entry["image"])):
                pictures.append(entry)
            elif not self.annotations:
                raise UserError(f"{entry['image']} is a slide, of which GeoJSON has annotations only: set them true.")
        only_pictures(self, pictures, "DicomSeg for a DICOM series, or the NIfTI mask")

    def write(self, made: Segmented) -> dict[str, str]:
        features = list(self._features(made, made.classes, "annotation")) if self.annotations else []
        if self.detections and made.instances is not None:
            features += self._features(made, made.instances, "detection")
        name = f"predictions/{made.case.name}.geojson"
        content = {"type": "FeatureCollection", "features": features}
        atomic_write(made.folder / name, json.dumps(content, ensure_ascii=False, allow_nan=False))
        return {"geojson": name}

    def _features(self, made: Segmented, labels: np.ndarray, kind: str) -> Iterator[dict[str, Any]]:
        shapes = outlines(labels)
        for row in made.measured(labels).to_dict("records"):
            number = int(row["class"])
            identity = uuid.uuid5(_NAMES, f"{made.case.hashes[0]} {made.origin.sha256} {kind} {row['label']}")
            name = made.origin.class_names[number]
            colour = COLOURS[(number - 1) % len(COLOURS)]
            yield {
                "type": "Feature",
                "id": str(identity),
                "geometry": self._geometry(shapes[int(row["label"])], made),
                "properties": {
                    "objectType": kind,
                    **({"name": str(row["label"])} if kind == "detection" else {}),
                    "classification": {"name": name, "color": list(colour)},
                    "measurements": qupath_measurements(row),
                },
            }

    def _geometry(self, shape: Any, made: Segmented) -> dict[str, Any]:
        import shapely

        if self.simplify:
            simpler = shapely.simplify(shape, self.simplify)
            if not simpler.is_valid:
                simpler = shapely.make_valid(simpler)
            # Once for a collection, and once for what is a collection in it.
            flat = shapely.get_parts(shapely.get_parts(simpler))
            parts = [part for part in flat if part.geom_type == "Polygon" and not part.is_empty]
            if parts:  # what is smaller than the tolerance stays as it is
                shape = parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)
        moved = shapely.transform(shape, lambda points: made.in_file(points[:, ::-1])[:, ::-1])
        mapping: dict[str, Any] = shapely.geometry.mapping(moved)
        return {"type": mapping["type"], "coordinates": _plain(mapping["coordinates"])}


def _plain(values: Any) -> Any:
    """Return nested coordinates as lists, whole ones as whole numbers."""
    if isinstance(values, (tuple, list)):
        return [_plain(value) for value in values]
    return int(values) if values == int(values) else round(float(values), 3)
