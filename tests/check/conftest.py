"""A small sound data set, to be spoiled one thing at a time."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medmdm.check.data_list import check
from medmdm.check.findings import Finding, Report
from tests.written import picture, random, write_nifti


@dataclass
class DataSet:
    """Files in a folder and the data list that names them; ``sections`` may be changed before :meth:`check`."""

    folder: Path
    sections: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {"training": [], "test": []})
    information: dict[str, Any] = field(default_factory=lambda: {"labels": {"background": 0, "gland": 1}})

    def add(self, section: str, name: str, label: np.ndarray | None = None, **columns: Any) -> dict[str, Any]:
        self.picture(f"{name}.png", random((12, 20, 3), name))
        self.picture(f"{name}_mask.png", np.eye(12, 20) if label is None else label)
        entry = {"image": f"{name}.png", "label": f"{name}_mask.png", **columns}
        self.sections[section].append(entry)
        return entry

    def picture(self, name: str, array: np.ndarray) -> None:
        picture(self.folder / name, array)

    def volume(self, name: str, array: np.ndarray, affine: np.ndarray) -> None:
        write_nifti(self.folder / name, array, affine)

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
