"""A small sound data set, to be spoiled one thing at a time."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from medmdm.check.data_list import check
from medmdm.check.findings import Finding, Report


@dataclass
class DataSet:
    """Files in a folder and the data list that names them; ``sections`` may be changed before :meth:`check`."""

    folder: Path
    sections: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {"training": [], "test": []})
    information: dict[str, Any] = field(default_factory=lambda: {"labels": {"background": 0, "gland": 1}})

    def add(self, section: str, name: str, label: np.ndarray | None = None, **columns: Any) -> dict[str, Any]:
        rng = np.random.default_rng(list(name.encode()))
        self.picture(f"{name}.png", rng.integers(0, 256, (12, 20, 3)))
        self.picture(f"{name}_mask.png", np.eye(12, 20) if label is None else label)
        entry = {"image": f"{name}.png", "label": f"{name}_mask.png", **columns}
        self.sections[section].append(entry)
        return entry

    def picture(self, name: str, array: np.ndarray) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array if array.dtype == np.uint16 else array.astype(np.uint8)).save(path)

    def volume(self, name: str, array: np.ndarray, affine: np.ndarray | None = None) -> None:
        nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), self.folder / name)

    def write(self) -> Path:
        path = self.folder / "dataset.json"
        path.write_text(json.dumps({**self.information, **self.sections}))
        return path

    def check(self) -> Report:
        return check(self.write(), progress=False)


@pytest.fixture
def data(tmp_path: Path) -> DataSet:
    made = DataSet(tmp_path)
    for i in range(3):
        made.add("training", f"a{i}", patient_id=f"SECRET{i}")
    made.add("test", "b0", patient_id="SECRET9")
    return made


@pytest.fixture
def only() -> Callable[..., Finding]:
    """Return the single finding of a report, checking its kind."""

    def take(report: Report, check: str, level: str = "error") -> Finding:
        assert [(finding.level, finding.check) for finding in report.findings] == [(level, check)], report.as_text()
        return report.findings[0]

    return take
