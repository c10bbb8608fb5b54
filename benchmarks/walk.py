"""How many files and functions of medmdm does a value pass? Two walks on runs of a second.

    python benchmarks/walk.py [--volumes] [--list]

The first walk is a crop's, from a picture to ``model.pt``; the second a labelled slice's, from its file to the Dice on
the report's page. Counted is what is entered after everything was imported, in all threads; module bodies are not
counted. Also counted: how often each image and label is decoded.
"""

from __future__ import annotations

import argparse
import collections
import json
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import nibabel as nib
import numpy as np
from monai.bundle import ConfigWorkflow
from PIL import Image

import medmdm

PACKAGE = Path(medmdm.__file__).parent
BUNDLES = PACKAGE.parent / "bundles"
TINY: dict[str, Any] = {
    "crop_size": [16, 16], "batch_size": 4, "max_steps": 4, "log_every": 2, "checkpoint_every": 2, "preview_every": 2,
    "preview_crops": 2, "network_def#channel_mult": [1, 1], "network_def#attention_resolutions": [2],
}  # fmt: skip
FROZEN = "overlays/frozen_segment"
HEAD = {"head#members": 2, "head#max_epochs": 4, "head#min_epochs": 4, "head#pixels": 64}


class Walk:
    """Counts what is entered between ``with`` and its end."""

    def __init__(self) -> None:
        self.entered: set[tuple[str, str]] = set()

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        """Note a call."""
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(str(PACKAGE)) and code.co_name != "<module>":
            self.entered.add((code.co_filename, code.co_qualname if hasattr(code, "co_qualname") else code.co_name))

    def __enter__(self) -> Walk:
        """Begin."""
        threading.setprofile(self)
        sys.setprofile(self)
        return self

    def __exit__(self, *error: object) -> None:
        """End."""
        sys.setprofile(None)
        threading.setprofile(None)

    def files(self) -> list[str]:
        """Return the files, relative to the package."""
        return sorted({str(Path(name).relative_to(PACKAGE)) for name, _ in self.entered if name.endswith(".py")})

    def templates(self) -> int:
        """Return how many templates were filled in."""
        return len({name for name, _ in self.entered if not name.endswith(".py")})


def pictures(folder: Path, volumes: bool) -> Path:
    """Write six cases of a bright blob, four to train and two to test, and their data list."""
    rng = np.random.default_rng(0)
    sections: dict[str, list[dict[str, str]]] = {"training": [], "test": []}
    for number in range(6):
        shape = (28 + 2 * number, 40, 8) if volumes else (28 + 2 * number, 40)
        label = np.zeros(shape, np.uint8)
        label[6:18, 8 + number : 24 + number] = 1
        if volumes:
            names = f"{number}.nii.gz", f"{number}_label.nii.gz"
            values = np.where(label > 0, 190, 60) + rng.integers(-30, 30, shape)
            nib.save(nib.Nifti1Image(values.astype(np.int16), np.eye(4)), folder / names[0])
            nib.save(nib.Nifti1Image(label, np.eye(4)), folder / names[1])
        else:
            names = f"{number}.png", f"{number}_mask.png"
            values = np.where(label[..., None] > 0, 190, 60) + rng.integers(-30, 30, (*shape, 3))
            Image.fromarray(values.astype(np.uint8)).save(folder / names[0])
            Image.fromarray(label).save(folder / names[1])
        entry = {"image": names[0], "label": names[1], "patient_id": f"patient {number}"}
        sections["training" if number < 4 else "test"].append(entry)
    content = {"name": "blobs", "labels": {"background": 0, "blob": 1}, **sections}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def bundle(name: str, *overlays: str, **overrides: Any) -> None:
    """Run a bundle as ``monai.bundle run`` does."""
    files = [str(BUNDLES / f"{one}.json") for one in (name, *overlays)]
    meta = str(BUNDLES / "metadata.json")
    workflow = ConfigWorkflow(files, meta_file=meta, logging_file=False, **overrides)
    workflow.initialize()
    workflow.run()
    workflow.finalize()


def decoded(counts: collections.Counter[str], folder: Path) -> Callable[[], None]:
    """Count every opening of a file of the data set by PIL or nibabel; return what ends the counting."""

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if active and event == "open" and isinstance(arguments[0], (str, bytes)):
            path = Path(str(arguments[0]))
            if path.parent == folder and path.suffix != ".json":
                counts[path.name] += 1

    active = [True]
    sys.addaudithook(audit)
    return active.clear


def main() -> None:
    """Walk twice and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", action="store_true", help="slices of NIfTI volumes instead of pictures")
    parser.add_argument("--list", action="store_true", help="print the files")
    given = parser.parse_args()
    slices = {"slice_axis": "axial", "channels": 1, "percentiles": [0.5, 99.5]} if given.volumes else {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        (folder / "data").mkdir()
        data = pictures(folder / "data", given.volumes)
        common = {"dataset_dir": str(data), "slice_cache": str(folder / "slices")}

        def pretrain(run: str) -> None:
            bundle("mdm_pretrain", run_dir=str(folder / run), **common, **TINY, **slices)

        def segment(run: str) -> None:
            model = str(folder / "once" / "model.pt")
            bundle("mdm_segment", FROZEN, run_dir=str(folder / run), backbone=model, **common, **HEAD)

        counts: collections.Counter[str] = collections.Counter()
        results = {}
        for title, step, first, second in (
            ("crop -> model.pt", pretrain, "once", "twice"),
            ("labelled slice -> Dice on the page", segment, "seg1", "seg2"),
        ):
            step(first)  # imports what is imported late
            with Walk() as walk:
                step(second)
            results[title] = walk
        stop = decoded(counts, data)
        common["slice_cache"] = str(folder / "other")
        segment("seg3")
        stop()
    for title, walk in results.items():
        functions = len([name for name, _ in walk.entered if name.endswith(".py")])
        print(f"{title}: {len(walk.files())} files, {functions} functions, {walk.templates()} templates")
        if given.list:
            print("  " + "\n  ".join(walk.files()))
    print("opened in one mdm_segment:", ", ".join(f"{k} {v}x" for k, v in sorted(counts.items())))


if __name__ == "__main__":
    main()
