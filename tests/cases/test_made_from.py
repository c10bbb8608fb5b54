"""What a file was made from is recorded in it, and compared before it is used."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medmdm.backbones.cache import CachedExtractor
from medmdm.data.slices import VolumeStore, open_slices
from medmdm.files import save_torch
from medmdm.intact import load_torch
from tests.bundle_runs import HEAD, Run
from tests.made import made_extractor
from tests.segment.conftest import pictures, refused, run  # noqa: F401  fixtures
from tests.segment.test_study import study_settings
from tests.written import picture, write_nifti


def test_a_segmenter_is_not_taken_for_another(run: Run, refused: Run, tmp_path: Path, pictures: Path) -> None:  # noqa: F811
    ridge = {"_target_": "medmdm.heads.ClosedFormHead", "method": "ridge"}
    first = run("mdm_segment", head=ridge, report=False)
    folder = tmp_path / "run"
    (folder / "run.json").unlink()
    said = "segmenter.pt was fitted with other settings or images"
    refused(said, "mdm_segment", head=HEAD, shots=2, report=False)
    for settings in ({"shots": 2}, {"seed": 5}, {"postprocess#fill_holes_below": 9}, {"overlap": 0.5}):
        (folder / "run.json").unlink()
        refused(said, "mdm_segment", head=ridge, report=False, **settings)
    (folder / "run.json").unlink()
    listed = json.loads((pictures / "dataset.json").read_text())
    renamed = {**listed, "labels": {"background": 0, "cell": 1}}
    refused(said, "mdm_segment", head=ridge, report=False, data_list=renamed)
    (folder / "run.json").unlink()
    mask = np.zeros((28, 40), np.uint8)
    mask[2:9, 5:20] = 1
    shutil.copy(pictures / "0_mask.png", tmp_path / "kept.png")
    picture(pictures / "0_mask.png", mask)
    refused(said, "mdm_segment", head=ridge, report=False)  # a label
    shutil.copy(tmp_path / "kept.png", pictures / "0_mask.png")
    (folder / "run.json").unlink()
    assert run("mdm_segment", head=ridge, report=False) == first  # the same settings go on
    plan = json.loads((folder / "run.json").read_text())
    assert set(plan["weights"]) == {"segmenter.pt"}


def test_classes_of_a_segmenter_are_those_of_the_list(run: Run, refused: Run, tmp_path: Path, pictures: Path) -> None:  # noqa: F811
    run("mdm_segment", report=False)
    path, listed = str(tmp_path / "run" / "segmenter.pt"), json.loads((pictures / "dataset.json").read_text())
    for labels, said in (
        ({"background": 0, "cell": 1}, "they must be the same"), ({"blob": 0, "background": 1}, "the background 1"),
    ):  # fmt: skip
        refused(said, "mdm_evaluate", segmenter=path, data_list={**listed, "labels": labels},
                run_dir=str(tmp_path / "evaluated"))  # fmt: skip
    same = {**listed, "labels": {"Background": 0, "Blob": 1}}
    assert run("mdm_evaluate", segmenter=path, data_list=same, run_dir=str(tmp_path / "evaluated"), report=False)


def test_a_volume_replaced_by_one_of_equal_size_and_time(tmp_path: Path) -> None:
    store, path = VolumeStore(tmp_path / "slices"), tmp_path / "a.nii"
    one, two = (np.full((6, 5, 4), value, np.int16) for value in (1, 2))
    write_nifti(path, one)
    first, before = store.get(str(path)), path.stat()
    assert (open_slices(first.path) == 1).all()
    write_nifti(tmp_path / "b.nii", two)
    os.replace(tmp_path / "b.nii", path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    open_slices.cache_clear()
    assert (open_slices(store.get(str(path)).path) == 2).all()
    path.write_bytes(path.read_bytes().replace(b"\2\0", b"\3\0"))  # in place
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    open_slices.cache_clear()
    assert (open_slices(store.get(str(path)).path) == 3).all()


def test_voxels_beside_a_header_are_part_of_the_volume(tmp_path: Path) -> None:
    header = "ObjectType = Image\nNDims = 3\nDimSize = 6 5 4\nElementType = MET_UCHAR\nElementDataFile = voxels.raw\n"
    (tmp_path / "a.mhd").write_text(header)
    store = VolumeStore(tmp_path / "slices")
    for value in (1, 2):
        (tmp_path / "voxels.raw").write_bytes(bytes([value]) * 120)
        os.utime(tmp_path / "voxels.raw", ns=(0, 0))
        open_slices.cache_clear()
        assert (open_slices(store.get(str(tmp_path / "a.mhd")).path) == value).all()


def test_features_of_another_torch_are_computed_again(tmp_path: Path) -> None:
    x = torch.rand((1, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    CachedExtractor(made_extractor(), tmp_path)(x)
    (path,) = tmp_path.rglob("*.pt")
    content = load_torch(path)
    for version, computed in (("1.0", 1), (None, 0), (str(torch.__version__), 0)):  # medmdm 0.1 did not say
        save_torch({k: v for k, v in {**content, "torch": version}.items() if v is not None}, path)
        cached = CachedExtractor(made_extractor(), tmp_path)
        cached(x)
        assert cached.extracted == computed


def test_cells_of_another_torch(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    settings: dict[str, Any] = study_settings(tmp_path, shots=[2], draws=1)

    def times() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (tmp_path / "study" / "cells").iterdir()}

    run("mdm_study", **settings)
    before = times()
    run("mdm_study", **settings)
    assert times() == before
    monkeypatch.setattr(torch, "__version__", "1.0")
    run("mdm_study", **settings)
    assert all(new != before[name] for name, new in times().items())
