"""Bit rot in the files of tiny runs: each is told, computed again, or changes nothing."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from medmdm.artifacts.pretrained import load_pretrained
from medmdm.artifacts.segmenter_file import load_segmenter
from medmdm.backbones.cache import CachedExtractor
from medmdm.data.files.decoding import decode_label
from medmdm.data.slices import VolumeStore, open_slices
from medmdm.data.validity import ImageGrid
from medmdm.data.writers import encode_picture
from medmdm.errors import UserError
from medmdm.intact import DamagedFileError, load_record
from medmdm.pretrain import Checkpoints
from medmdm.segment.grid import finished
from tests.bundle_runs import Run, Workflow, saved_by
from tests.damage.flips import damages, equal
from tests.made import made_extractor
from tests.segment.conftest import pictures, run  # noqa: F401  fixtures
from tests.segment.test_study import study_settings
from tests.written import write_nifti

COUNT = 24


def tried(path: Path, load: Callable[[], Any], said: type[UserError] = DamagedFileError) -> int:
    """Damage a file again and again; return how often that was told, where all else came out the same."""
    whole, expected, told = path.read_bytes(), load(), 0
    for content in damages(whole, COUNT, seed=len(whole)):
        path.write_bytes(content)
        try:
            found, sentence = load(), None
        except said as error:
            found, sentence = None, str(error)
        assert equal(found, expected) if sentence is None else path.name in sentence
        told += sentence is not None
    path.write_bytes(whole)
    assert equal(load(), expected)
    return told


def weights(path: Path) -> Any:
    network, plan = load_pretrained(path)
    return [network.state_dict(), plan]


def test_files_of_a_pretraining(workflow: Workflow, tmp_path: Path) -> None:
    saved_by(workflow())
    folder = tmp_path / "run"
    assert tried(folder / "model.pt", lambda: weights(folder / "model.pt")) > COUNT / 2
    assert tried(folder / "run.json", lambda: load_record(folder / "run.json")) > COUNT / 2
    checkpoints = Checkpoints(folder / "checkpoints")
    older, newest = checkpoints.paths()
    kept, wanted = {path: path.read_bytes() for path in (older, newest)}, checkpoints.load_newest()
    for content in damages(kept[newest], COUNT):
        newest.write_bytes(content)
        found = checkpoints.load_newest()
        assert found is not None
        if newest.exists():
            assert equal(found, wanted)
        else:
            assert found["step"] == 4
            newest.with_suffix(".damaged").unlink()
    for path, content in kept.items():
        path.write_bytes(content)
    digest = json.loads((folder / "run.json").read_text())["weights"]["model.pt"]
    assert digest == hashlib.sha256((folder / "model.pt").read_bytes()).hexdigest()


def test_files_of_segmenting_and_a_study(run: Run, tmp_path: Path) -> None:  # noqa: F811
    run("mdm_segment", report=False)
    path = tmp_path / "run" / "segmenter.pt"

    def load() -> Any:
        model, plan = load_segmenter(path)
        return [model.state_dict(), plan]

    assert tried(path, load) > COUNT / 2
    record = tmp_path / "run" / "run.json"
    assert tried(record, lambda: load_record(record)) > COUNT / 2
    run("mdm_study", **study_settings(tmp_path, shots=[2], draws=1))
    cell = min((tmp_path / "study" / "cells").iterdir())
    whole = cell.read_bytes()
    content = load_record(cell)
    for damaged in damages(whole, COUNT):
        cell.write_bytes(damaged)
        assert finished(cell, content["key"]) in (None, content)


@pytest.mark.slow
def test_features_and_volumes_are_computed_again(tmp_path: Path) -> None:
    x = torch.rand((1, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    extractor = made_extractor()
    expected = CachedExtractor(extractor, tmp_path / "features")(x)
    (path,) = (tmp_path / "features").rglob("*.pt")
    assert tried(path, lambda: CachedExtractor(extractor, tmp_path / "features")(x)) == 0
    assert equal(CachedExtractor(extractor, tmp_path / "features")(x), expected)

    store, volume = VolumeStore(tmp_path / "slices"), str(write_nifti(tmp_path / "a.nii"))
    for path in (store.get(volume).path, store.get(volume).path.with_suffix(".json")):

        def load() -> Any:
            open_slices.cache_clear()
            found = store.get(volume)
            return [open_slices(found.path).copy(), found.quantiles, found.foreground, found.digest]

        assert tried(path, load) == 0


def test_labels(tmp_path: Path) -> None:
    label = torch.zeros(1, 40, 60, dtype=torch.uint8)
    label[:, 10:20, 10:30], label[:, 25:35, 15:40] = 1, 2
    path = tmp_path / "label.png"
    path.write_bytes(encode_picture(label.numpy(), ".png"))
    assert tried(path, lambda: decode_label(path, ImageGrid((40, 60))).array, UserError) > COUNT / 2
