"""GlaS, glands in colon histology (MICCAI 2015), as published by the University of Warwick."""

from __future__ import annotations

import io
import re
from collections import Counter
from pathlib import Path

import pandas as pd
from skimage.segmentation import relabel_sequential

from medmdm.data.lists import SECTIONS, load_data_list
from medmdm.errors import UserError, counted
from medmdm.files import delimiter_of, text_of
from medmdm.prepare.preparation import Label, Preparation, picture_case, read_label
from medmdm.prepare.release import Release, SourceFile, by_stem

_NAME = re.compile(r"(train|testA|testB)_\d+")
_ROWS = {"train": "training", "testA": "test A", "testB": "test B"}


def plan(release: Release) -> Preparation:
    """Plan GlaS: ``train_*.bmp``, ``testA_*.bmp``, ``testB_*.bmp``, their ``*_anno.bmp``, and ``Grade.csv``."""
    published = load_data_list("glas")
    images = by_stem([file for file in release.images if _NAME.fullmatch(file.stem)])
    masks = by_stem([file for file in release.images if _NAME.fullmatch(file.stem.removesuffix("_anno"))])
    if not images:
        searched = f"{release.source} holds no GlaS image (train_1.bmp, testA_1.bmp, ...)"
        raise UserError(f"{searched}: give the release's folder.")
    grades, notices = _grades(release)
    cases, totals, absent, unlabelled = [], Counter[str](), Counter[str](), []
    for section in SECTIONS:
        for entry in getattr(published, section):
            stem = Path(entry["image"]).stem
            row = _ROWS[stem.split("_")[0]]
            totals[row] += 1
            if stem not in images:
                absent[row] += 1
                continue
            image, own = images.pop(stem), [masks[name] for name in (f"{stem}_anno",) if name in masks]
            if not own:
                unlabelled.append(stem)
            known = {key: value for key, value in entry.items() if key not in ("image", "label")}
            columns = grades.get(stem, known)
            cases.append(picture_case(stem, section, image, own, _glands, row=row, columns=columns))
    notices += [f"{row}: {missing} of {totals[row]} images are not in the source" for row, missing in absent.items()]
    if unlabelled:
        notices.append(
            f"{counted(len(unlabelled), 'image', 'has', 'have')} no mask (*_anno), so there is no label: "
            f"{', '.join(unlabelled[:10])}"
        )
    if images:
        notices.append(
            f"{counted(len(images), 'image', 'is', 'are')} not in the official release and left out: "
            f"{', '.join(images)}"
        )
    scale = {"objective": "20x", "spacing": [0.00062, 0.00062]}  # mm
    information = {"name": published.name, **published.information, **scale}
    return Preparation(information, tuple(cases), (*release.notices, *notices))


def _glands(image: SourceFile, shape: tuple[int, ...], mask: SourceFile) -> Label:
    numbers = read_label(mask, shape, image)
    label = relabel_sequential(numbers)[0]
    closed = (label != numbers).any()
    return Label(label, notes=(f"{image.stem}: object numbers had gaps and were closed up",) if closed else ())


def _grades(release: Release) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Return patient and grades by image name from Grade.csv."""
    found = [file for file in release.files if file.path.name.lower() == "grade.csv"]
    if not found:
        return {}, ["Grade.csv is not in the source: patients and grades are those of the list that comes with medmdm"]
    with found[0].local() as path:
        content = path.read_bytes()
    try:
        # The published file ends its lines with bare carriage returns, and some cells begin with a space.
        text = text_of(content).replace("\r\n", "\n").replace("\r", "\n")
        table = pd.read_csv(
            io.StringIO(text), dtype=str, sep=delimiter_of(text), skipinitialspace=True, keep_default_na=False
        )
        columns = table.rename(columns=str.strip)[
            ["name", "patient ID", "grade (GlaS)", "grade (Sirinukunwattana et al. 2015)"]
        ]
    except (ValueError, KeyError) as error:
        raise UserError(
            f"{found[0].shown} is not the Grade.csv of the release (columns name, patient ID, grade (GlaS), grade "
            "(Sirinukunwattana et al. 2015)): take the published one, or remove it."
        ) from error
    return {
        name.strip(): {
            "patient_id": patient.strip(),
            "grade": grade.strip(),
            # The published table leaves an "i" out.
            "grade_sirinukunwattana_2015": fine.strip().replace("differentated", "differentiated"),
        }
        for name, patient, grade, fine in columns.itertuples(index=False)
    }, []
