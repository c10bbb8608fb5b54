"""Pipes and devices, from which reading may never end, are not read; what killed programs left is swept."""

import os
from pathlib import Path

import numpy as np
import pytest

from medmdm.cli import main
from medmdm.data.files.pictures import read_image
from medmdm.data.files.volumes import read_volume
from medmdm.data.folders import walk_files
from medmdm.files import mark_outputs
from tests.made import refused
from tests.written import picture

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")


def test_a_folder_with_pipes_and_devices_is_prepared(tmp_path: Path, capsys) -> None:
    source = tmp_path / "in"
    for name in ("a", "b"):
        picture(source / f"{name}.png", np.full((8, 8, 3), 7))
    for name in ("pipe.png", "pipe_mask.png", "notes"):
        os.mkfifo(source / name)
    (source / "endless.png").symlink_to("/dev/zero")
    assert sorted(path.name for path in walk_files(source)) == ["a.png", "b.png"]
    assert main(["prepare", "folder", str(source), str(tmp_path / "out")]) == 0
    assert main(["prepare", "volumes", str(source), str(tmp_path / "volumes")]) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_a_pipe_that_a_list_or_a_header_names_is_refused(tmp_path: Path) -> None:
    for name in ("a.png", "a.nii", "a.mha", "a.raw"):
        os.mkfifo(tmp_path / name)
    refused("is a pipe", read_image, tmp_path / "a.png")
    for name in ("a.nii", "a.mha"):
        refused("is a pipe", read_volume, tmp_path / name)
    header = "ObjectType = Image\nNDims = 3\nDimSize = 6 5 4\nElementType = MET_UCHAR\nElementDataFile = a.raw\n"
    (tmp_path / "a.mhd").write_text(header)
    refused("a pipe", read_volume, tmp_path / "a.mhd")


def test_leftovers_in_folders_of_outputs_are_swept(tmp_path: Path) -> None:
    for name in ("predictions", "previews"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / ".case.png.1234.5.part").write_bytes(b"half")
        (folder / "case.png").write_bytes(b"whole")
        mark_outputs(folder)
        assert {path.name for path in folder.iterdir()} == {"case.png", ".medmdm_outputs"}
