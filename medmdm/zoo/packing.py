"""Packing: the files of a bundle, laid out beside its destination, checked by MONAI's own tools, and moved there."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser, ConfigWorkflow, ckpt_export, verify_metadata, verify_net_in_out
from monai.utils import BundlePropertyConfig

from medmdm.artifacts.export import TOLERANCE
from medmdm.artifacts.pretrained import load_pretrained
from medmdm.artifacts.segmenter_file import load_segmenter, save_segmenter
from medmdm.artifacts.weights import read_checkpoint
from medmdm.errors import UserError, find_user_error, refuse_full_disk, when_interrupted
from medmdm.files import atomic_file, atomic_write, claim, expanded, file_hash, resource_folder, save_json, weights_hash
from medmdm.zoo.card import model_card
from medmdm.zoo.configs import BACKBONE, backbone_of, configs
from medmdm.zoo.finished_run import FinishedRun, open_run
from medmdm.zoo.metadata import About, make_metadata

logger = logging.getLogger(__name__)

_NO_LICENCE = "No licence was stated when this bundle was packed: ask its authors before you use or share it.\n"
_NAME_OF_A_FILE = re.compile(r"(?![a-z]+://)\S+\.(txt|md|rst)|[.~]{0,2}/\S+|LICEN[CS]E|COPYING", re.IGNORECASE)
_NO_DATA_LICENCE = (
    "The licence of the data was not stated when this bundle was packed: find it out before you share it.\n"
)


def metadata_schema() -> Path:
    """Return the schema of ``metadata.json`` that comes with medmdm, for ``monai.bundle verify_metadata``."""
    return resource_folder("bundles") / "schemas" / "zoo_metadata.json"


def pack(
    run: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    about: About | None = None,
    backbone: str | os.PathLike[str] | None = None,
) -> Path:
    """Write a bundle in the layout of MONAI's model zoo from a pre-training or a segmenting run.

    What was written is checked by MONAI's ``verify_metadata`` (with the schema that comes with medmdm),
    ``verify_net_in_out``, and for the parts that ``check_properties`` asks for (itself it wants images); it only comes
    to its place if they pass. ``models/model.ts`` is made by ``ckpt_export`` where the network can be traced.

    Args:
        run: the run's folder.
        destination: the bundle's folder; it must not exist yet, its name is the bundle's.
        about: what its makers say of it.
        backbone: weights file of the backbone of a segmenting run, where the run's config does not find it.

    Returns:
        The bundle's folder.

    Raises:
        UserError: the run cannot be packed, the destination exists or has a ``#`` in its path, or a check fails.
    """
    about, found = about or About(), open_run(run)
    target = expanded(destination).absolute()
    if "#" in str(target):
        raise UserError(f"{target} has a # in it, which a config of MONAI's cannot hold in a path: choose another.")
    with refuse_full_disk(target.parent), _scratch(target) as folder:
        sentences = _lay_out(found, folder, about, backbone)
        with _quiet():
            _verify(folder, found)
            sentences += _trace(folder)
        os.replace(folder, target)
    for sentence in sentences:
        logger.warning("%s.", sentence)
    if about.unstated:
        logger.warning("not stated: %s. Say them before you share the bundle.", ", ".join(about.unstated))
    return target


@contextlib.contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """Give a folder beside the destination, of its name; what a killed program left there goes before, all after."""
    around = target.with_name(f".{target.name}.packing")
    claim(around)
    shutil.rmtree(around, ignore_errors=True)
    _refuse_existing(target)
    around.mkdir(parents=True, exist_ok=True)
    claim(around)
    _refuse_existing(target)  # another program has just ended
    when_interrupted("nothing is packed yet; the same command starts anew.")
    try:
        yield around / target.name
    finally:
        shutil.rmtree(around, ignore_errors=True)


def _refuse_existing(target: Path) -> None:
    if target.exists():
        raise UserError(f"{target} exists already: move it away or choose another name.")


def _lay_out(run: FinishedRun, folder: Path, about: About, given: str | os.PathLike[str] | None) -> list[str]:
    """Write everything but ``model.ts``; return what the user should know."""
    for part in ("configs", "models", "docs"):
        (folder / part).mkdir(parents=True)
    backbone = backbone_of(run, given) if run.segments else None
    with_backbone = _weights(run, folder / "models", backbone, given is not None)
    made, sentences = configs(run, with_backbone)
    for name, content in made.items():
        save_json(content, folder / "configs" / name)
    metadata = make_metadata(run, about)
    save_json(metadata, folder / "configs" / "metadata.json")
    shutil.copyfile(resource_folder("bundles") / "logging.conf", folder / "configs" / "logging.conf")
    atomic_write(folder / "docs" / "README.md", model_card(run, metadata))
    atomic_write(folder / "LICENSE", _text(about.licence) or _NO_LICENCE)
    listed = run.record["data"].get("licence")
    atomic_write(
        folder / "docs" / "data_license.txt",
        _text(about.data_licence) or (f"{listed}\n" if listed else _NO_DATA_LICENCE),
    )
    atomic_write(folder / "large_files.yml", "large_files: []\n")
    return sentences


def _weights(run: FinishedRun, models: Path, backbone: Path | None, must: bool) -> bool:
    """Write ``model.pt``, and the backbone where it is the run's; return whether it comes along."""
    whole = run.weights
    if run.segments and read_checkpoint(whole).get("kind") == "head":
        if backbone is None:
            raise UserError(
                f"{whole} was saved without its backbone, which is not where it was: give it as --backbone."
            )
        segmenter, plan = load_segmenter(whole, backbone)
        save_segmenter(models / "model.pt", segmenter, plan)
    else:
        shutil.copyfile(whole, models / "model.pt")
    if backbone is None:
        return False
    known = run.task.get("backbone_sha256")
    if known is None or weights_hash(load_pretrained(backbone)[0].state_dict()) != known:
        if must:
            raise UserError(f"{backbone} is not the backbone that {run.folder} was made with: give that one.")
        return False
    shutil.copyfile(backbone, models / BACKBONE)
    return True


def _text(given: str | None) -> str | None:
    """Return the text, or that of the file it names, with one line end."""
    if not given:
        return None
    path = expanded(given)
    try:
        content = path.read_text(encoding="utf-8") if len(given) < 1000 and path.is_file() else given
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{given} cannot be read as a licence: give a text file in UTF-8, or the text.") from error
    if content is given and _NAME_OF_A_FILE.fullmatch(given):
        raise UserError(f"{given}, given as a licence, does not exist: give a text file, or the text.")
    return content.rstrip() + "\n"


def _verify(folder: Path, run: FinishedRun) -> None:
    """Put the bundle through MONAI's checks."""
    configs, schema = folder / "configs", metadata_schema()
    meta = str(configs / "metadata.json")
    try:
        verify_metadata(meta_file=meta, filepath=schema, hash_val=file_hash(schema), hash_type="sha256")
        verify_net_in_out(
            net_id="network_def", meta_file=meta, config_file=str(configs / "inference.json"), device="cpu",
            bundle_root=str(folder),
        )  # fmt: skip
    except Exception as error:  # MONAI wraps what a config's parts raise
        said = str(find_user_error(error) or error).splitlines()[0]
        raise UserError(f"{run.folder} cannot be packed, it fails MONAI's check: {said}") from error
    for kind in ("inference",) if run.segments else ("inference", "train"):  # a head has no trainer of MONAI's
        workflow = ConfigWorkflow(
            config_file=str(configs / f"{kind}.json"), meta_file=meta, logging_file=False, workflow_type=kind,
            bundle_root=str(folder),
        )  # fmt: skip
        wanted = {name: one[BundlePropertyConfig.ID] for name, one in workflow.properties.items() if one["required"]}
        lacking = [name for name, place in wanted.items() if place not in workflow.parser]
        if lacking:
            raise UserError(f"{run.folder} cannot be packed: configs/{kind}.json lacks {', '.join(lacking)}.")


def _trace(folder: Path) -> list[str]:
    """Write ``model.ts`` where the network can be traced; return why not."""
    config, meta = str(folder / "configs" / "inference.json"), str(folder / "configs" / "metadata.json")
    path = folder / "models" / "model.ts"
    where: dict[str, Any] = {"meta_file": meta, "config_file": config, "bundle_root": str(folder), "device": "cpu"}
    try:
        with atomic_file(path) as file:  # of a path libtorch makes the file, and aborts the program on a full disk
            ckpt_export(net_id="network_def", filepath=file, use_trace=True, **where)
        network, image = _network(where), None
        spec = ConfigParser.load_config_file(meta)["network_data_format"]["inputs"]["image"]
        image = torch.rand(2, spec["num_channels"], *spec["spatial_shape"], generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            difference = float((torch.jit.load(str(path))(image) - network(image)).abs().max())
    except OSError:
        raise  # of the disk, not of the network
    except Exception as error:  # whatever tracing raises of a network that it cannot follow
        path.unlink(missing_ok=True)
        return [f"models/model.ts is left out, because the network cannot be traced ({str(error).splitlines()[0]})"]
    if not difference <= TOLERANCE:
        path.unlink()
        return [f"models/model.ts is left out, because its output differs by {difference:.1e}"]
    return []


def _network(where: Mapping[str, Any]) -> Any:
    parser = ConfigParser()
    parser.read_config(where["config_file"])
    parser.read_meta(where["meta_file"])
    parser["bundle_root"], parser["device"] = where["bundle_root"], where["device"]
    return parser.get_parsed_content("network_def").eval()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep MONAI from telling each argument of its checks."""
    root = logging.getLogger("monai")
    level, disabled = root.level, logging.root.manager.disable
    root.setLevel(logging.ERROR)
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)
        logging.disable(disabled)
