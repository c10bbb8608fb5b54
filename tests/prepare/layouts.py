"""Tiny copies of what publishers ship, made on the spot."""

import json
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tests.made_slides import tissue_in, write_slide
from tests.written import picture


def mask(path: Path, boxes: Iterable[tuple[int, int, int, int, int]], rows: int = 20, columns: int = 30) -> Path:
    """Write a grey mask of boxes (first row, end row, first column, end column, value)."""
    values = np.zeros((rows, columns))
    for top, bottom, left, right, value in boxes:
        values[top:bottom, left:right] = value
    return picture(path, values)


def rectangle(left: float, top: float, right: float, bottom: float) -> list[tuple[float, float]]:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def aperio(regions: Iterable[list | tuple[list, bool]], header: bool = False, microns: str | None = "0.252000") -> str:
    """Return Aperio XML of lists of points; a region given as (points, True) is negative."""
    lines = ['<?xml version="1.0" encoding="utf-8"?>'] if header else []
    lines.append("<Annotations>" if microns is None else f'<Annotations MicronsPerPixel="{microns}">')
    lines.append('\t<Annotation Id="1" Name="" Type="4"><Attributes/><Regions><RegionAttributeHeaders/>')
    for number, region in enumerate(regions, 1):
        points, negative = region if isinstance(region, tuple) else (region, False)
        lines.append(f'<Region Id="{number}" Area="1.5" NegativeROA="{int(negative)}"><Attributes/><Vertices>')
        lines += [f'<Vertex X="{x}" Y="{y}"/>' for x, y in points]
        lines.append("</Vertices></Region>")
    return "\n".join([*lines, "</Regions></Annotation></Annotations>\n"])


def glas(root: Path) -> Path:
    """Two training images and one of test A, with the release's Grade.csv in miniature."""
    for name in ("train_1", "train_10", "testA_2"):
        picture(root / f"{name}.bmp")
        mask(root / f"{name}_anno.bmp", [(1, 5, 1, 6, 1), (8, 12, 10, 20, 2), (15, 18, 1, 6, 1)])
    (root / "Grade.csv").write_bytes(
        b"name,patient ID, grade (GlaS), grade (Sirinukunwattana et al. 2015)\r"
        b"train_1,21, benign, healthy\rtrain_10,22, malignant, moderately-to-poorly differentated\r"
        b"testA_2,21, benign, healthy"
    )
    return root


TRAINED = "TCGA-18-5592-01Z-00-DX1"
WITH_MASK = "TCGA-A7-A13F-01Z-00-DX1"
LATER = "TCGA-XX-0000-01Z-00-DX1"
TESTED = "TCGA-HC-7209-01A-01-TS1"


def monuseg(root: Path) -> Path:
    """One training image with XML, one with an instance mask only, one of the later release, one of the test set."""
    training, test = root / "MoNuSegTrainingData", root / "MoNuSegTestData"
    for folder, name in ((training, TRAINED), (training, WITH_MASK), (training, LATER), (test, TESTED)):
        picture(folder / "Tissue Images" / f"{name}.tif")
        if name != WITH_MASK:
            path = folder / "Annotations" / f"{name}.xml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(aperio([rectangle(1, 1, 5, 4), [(7, 7), (9, 9)], rectangle(10, 2, 40, 12)]))
    mask(training / "Instances" / f"{WITH_MASK}.png", [(1, 5, 1, 6, 1), (8, 12, 10, 20, 4)])
    return root


def dsb2018(root: Path) -> Path:
    """Two images of stage 1, one of them wider than the other, and one test image."""
    train = root / "stage1_train"
    for name, columns in (("aa11", 30), ("bb22", 40)):
        picture(train / name / "images" / f"{name}.png", shape=(20, columns, 4))
        for number, left in enumerate((1, 12, 20)):
            mask(train / name / "masks" / f"m{number}.png", [(2, 6, left, left + 5, 255)], columns=columns)
    picture(root / "stage1_test" / "cc33" / "images" / "cc33.png", shape=(20, 30, 4))
    return root


def folder(root: Path) -> Path:
    """Images and class masks in parallel folders, one image without a mask."""
    for name in ("a/x", "b/x", "b/y"):
        picture(root / "images" / f"{name}.tif", seed=name)
    for name in ("a/x", "b/x"):
        mask(root / "labels" / f"{name}.png", [(1, 5, 1, 6, 1), (8, 12, 10, 20, 3)])
    return root


def cvat(root: Path) -> Path:
    """CVAT's "Segmentation mask" of two images, objects of two classes."""
    colours = {"nucleus": (250, 50, 83), "mitosis": (51, 221, 255)}
    lines = ["background:0,0,0::", *(f"{name}:{','.join(map(str, colour))}::" for name, colour in colours.items())]
    for i in range(2):
        picture(root / "JPEGImages" / f"s{i}.png")
        classes, objects = np.zeros((20, 30, 3)), np.zeros((20, 30, 3))
        classes[2:8, 3:9], classes[10:16, 14:25] = colours.values()
        objects[2:8, 3:9], objects[10:16, 14:25] = (128, 0, 0), (0, 128, 0)
        picture(root / "SegmentationClass" / f"s{i}.png", classes)
        picture(root / "SegmentationObject" / f"s{i}.png", objects)
    (root / "labelmap.txt").write_text("\n".join(lines) + "\n")
    return root


def coco(root: Path) -> Path:
    """CVAT's COCO export of two images, a polygon and run lengths in the first."""
    for i in range(2):
        picture(root / "images" / "default" / f"s{i}.png")
    polygon = {"segmentation": [[3, 2, 9, 2, 9, 8, 3, 8]], "category_id": 1, "iscrowd": 0}
    runs = {"segmentation": {"size": [20, 30], "counts": [290, 6, 304]}, "category_id": 2, "iscrowd": 1}
    content = {
        "images": [{"id": i, "file_name": f"s{i}.png", "height": 20, "width": 30} for i in range(2)],
        "categories": [{"id": 1, "name": "nucleus"}, {"id": 2, "name": "mitosis"}],
        "annotations": [{"id": i, "image_id": 0, **one} for i, one in enumerate((polygon, runs))],
    }
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_default.json").write_text(json.dumps(content))
    return root


def slides(root: Path) -> Path:
    """Three slides: two annotated in QuPath, one in ImageScope."""
    root.mkdir(parents=True, exist_ok=True)

    def feature(name: str, *corners: float) -> dict:
        ring = [*rectangle(*corners), rectangle(*corners)[0]]
        geometry = {"type": "Polygon", "coordinates": [ring]}
        return {"type": "Feature", "geometry": geometry, "properties": {"classification": {"name": name}}}

    for name in "abc":
        write_slide(root / f"{name}.tif", (620, 900), tissue_in(620, 900), "plain")
    drawn = [feature("Region*", 150, 200, 500, 460), feature("Tumor", 200, 250, 300, 330)]
    for name in "ab":
        (root / f"{name}.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": drawn}))
    layers = (("Region*", (150, 200, 500, 460)), ("Tumor", (330, 260, 420, 400)))
    text = "".join(
        f'<Annotation Id="{i}" Name="{name}"><Regions><Region Id="1" Type="0"><Vertices>'
        + "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in rectangle(*corners))
        + "</Vertices></Region></Regions></Annotation>"
        for i, (name, corners) in enumerate(layers, 1)
    )
    (root / "c.xml").write_text(f"<Annotations>{text}</Annotations>")
    return root


MAKERS = {"glas": glas, "monuseg": monuseg, "dsb2018": dsb2018, "folder": folder}


def zipped(source: Path, target: Path, top: str = "") -> Path:
    """Pack a folder as publishers do: below one more folder, with what a Mac adds."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(source.rglob("*")):
            name = f"{top}{path.relative_to(source).as_posix()}"
            archive.write(path, name)
            if path.is_file():
                archive.writestr(f"__MACOSX/{Path(name).parent}/._{path.name}", b"\0\5\26\7")
    return target


def contents(root: Path) -> dict[str, bytes]:
    """Return every file below a folder."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def stamps(root: Path) -> dict[str, int]:
    """Return when every file and folder was last changed."""
    return {str(path): path.stat().st_mtime_ns for path in (root, *sorted(root.rglob("*")))}
