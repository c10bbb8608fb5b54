"""The base installation: what is optional is loaded by whoever asks for it, and the package is complete."""

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")
#: Import names of what the extras bring, by the names of their packages where these differ.
MODULES = {
    "dask-jobqueue": "dask_jobqueue", "mkdocs-material": "material", "mkdocstrings": "mkdocstrings",
    "openslide-bin": "openslide_bin", "openslide-python": "openslide", "scikit-learn": "sklearn",
}  # fmt: skip
#: Also of the base installation, or brought along by it.
BASE = {"onnx", "onnxruntime", "onnxscript"}


def optional() -> list[str]:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    names = {re.match(r"[\w-]+", line)[0] for extra, lines in extras.items() if extra != "dev" for line in lines}  # type: ignore[index]
    return sorted(MODULES.get(name, name) for name in names)


def test_the_extras_are_known() -> None:
    assert {"dask", "distributed", "highdicom", "shapely", "mlflow", "webdataset", "openslide", "timm"} <= set(
        optional()
    )


@pytest.mark.slow
@pytest.mark.parametrize("program", [
    "import medmdm.cli; medmdm.cli._parser().format_help()",
    "import medmdm.data, medmdm.heads, medmdm.segment, medmdm.pretrain, medmdm.reports, medmdm.runs, medmdm.artifacts",
], ids=["command line", "rooms"])  # fmt: skip
def test_nothing_optional_is_needed(program: str) -> None:
    """In a process in which none of the optional packages can be imported, as in a base installation."""
    blocked = f"import sys; sys.modules.update(dict.fromkeys({optional()!r}))\n"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", blocked + program], cwd=ROOT, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_help_loads_nothing_heavy() -> None:
    code = "import json, sys, medmdm.cli; medmdm.cli._parser().format_help(); print(json.dumps(list(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300, check=True
    )
    loaded = {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}
    assert not loaded & {"torch", "monai", "skimage", "pandas", *optional()}


@pytest.mark.slow
def test_wheel_holds_configs_and_names_the_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (points,) = [name for name in names if name.endswith("entry_points.txt")]
        assert "medmdm = medmdm.cli:main" in archive.read(points).decode()
    for folder in ("bundles", "data_lists"):
        for file in (ROOT / folder).rglob("*.json"):
            assert f"medmdm/_resources/{file.relative_to(ROOT).as_posix()}" in names
    assert "medmdm/reports/templates/page.html.j2" in names
    pytest.importorskip("twine")
    check = [sys.executable, "-m", "twine", "check", "--strict", str(wheel)]
    assert "PASSED" in subprocess.run(check, capture_output=True, text=True, timeout=300, check=True).stdout
