"""``metadata.json`` of a packed bundle: what the run itself knows, and what its makers say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import metadata
from typing import Any

import medmdm
from medmdm.errors import UserError, counted
from medmdm.zoo.finished_run import FinishedRun

#: The zoo's own schema, which it downloads; ``bundles/schemas/zoo_metadata.json`` asks for no less.
SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
PAPER = (
    "Pan, Z., Chen, J., Shi, Y. Masked Diffusion as Self-supervised Representation Learner. arXiv:2308.05695 (2023). "
    "https://arxiv.org/abs/2308.05695"
)
_NOT_STATED = "not stated"


@dataclass(frozen=True)
class About:
    """What only the makers of a bundle can say; what is left out is said to be so.

    Args:
        name: title of the bundle.
        version: of the bundle, three numbers.
        changes: what this version is, for the changelog.
        authors: who made it.
        copyright: who owns it.
        licence: of the weights: text, or a file that holds it.
        data_licence: of the data: text, or a file that holds it.
        data_source: where the data can be had.
        modality: of the images, such as ``CT``, ``MR`` or ``histology``.
        intended_use: what it is for.
        references: publications.

    Raises:
        UserError: the version is none.
    """

    name: str | None = None
    version: str = "0.1.0"
    changes: str = "first version"
    authors: str = _NOT_STATED
    copyright: str = _NOT_STATED
    licence: str | None = None
    data_licence: str | None = None
    data_source: str = _NOT_STATED
    modality: str = _NOT_STATED
    intended_use: str | None = None
    references: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        parts = self.version.split(".")
        if len(parts) != 3 or not all(part.isdigit() for part in parts):
            raise UserError(f"version is {self.version!r}: give three numbers, such as 0.1.0.")

    @property
    def unstated(self) -> list[str]:
        """Names of what should be said before the bundle is shared."""
        wanted = ("authors", "copyright", "licence", "data_licence", "data_source", "modality")
        return [
            one.name for one in fields(self) if one.name in wanted and getattr(self, one.name) in (None, _NOT_STATED)
        ]


def make_metadata(run: FinishedRun, about: About) -> dict[str, Any]:
    """Return the content of ``metadata.json``."""
    text = _segmenter_texts(run) if run.segments else _pretrained_texts(run)
    versions: Mapping[str, str] = run.record["sessions"][-1]["versions"]
    own = f"{run.weights.name} of {run.bundle}, SHA-256 {run.record['weights'][run.weights.name]}"
    return {
        "schema": SCHEMA,
        "version": about.version,
        "changelog": {about.version: about.changes},
        "monai_version": _public(versions.get("monai")) or metadata.version("monai"),
        "pytorch_version": _public(versions.get("torch")) or _public(metadata.version("torch")),
        "numpy_version": _public(versions.get("numpy")) or metadata.version("numpy"),
        "required_packages_version": {
            "medmdm": str(run.record.get("medmdm", medmdm.__version__)),
            "pytorch-ignite": versions.get("pytorch-ignite") or metadata.version("pytorch-ignite"),
        },
        "name": about.name or text["name"],
        "task": text["task"],
        "description": f"{text['description']} Made from {own}.",
        "authors": about.authors,
        "copyright": about.copyright,
        "data_source": about.data_source,
        "data_type": "files that medmdm reads: PNG, TIFF, JPEG, NIfTI, DICOM and others",
        "image_classes": _image_classes(run),
        **({"label_classes": text["label_classes"]} if run.segments else {}),
        "pred_classes": text["pred_classes"],
        "eval_metrics": run.metrics,
        "intended_use": about.intended_use or text["intended_use"],
        "references": list(about.references) or ([] if "padding" in run.plan else [PAPER]),  # a network from scratch
        "network_data_format": {
            "inputs": {"image": _tensor(run, about, input_channels(run), [-1, 1])},
            "outputs": {"pred": _output(run, about)},
        },
    }


def input_channels(run: FinishedRun) -> list[str]:
    """Return what each channel of the image is."""
    neighbours = int(run.images.get("context_slices") or 0)
    if neighbours:
        places = [f"slice {n:+d}" if n else "the slice" for n in range(-neighbours, neighbours + 1)]
        sequences = run.channels // len(places)
        return places if sequences == 1 else [f"sequence {s}, {p}" for s in range(1, sequences + 1) for p in places]
    if run.channels == 1:
        return ["image"]
    stored = run.images.get("intensity_range") is None and run.images.get("percentiles") is None
    return ["red", "green", "blue"] if run.channels == 3 and stored else [f"channel {n}" for n in range(run.channels)]


def _tensor(run: FinishedRun, about: About, channels: list[str], values: list[float]) -> dict[str, Any]:
    return {
        "type": "image",
        "format": "hounsfield" if about.modality.upper() == "CT" else "magnitude",
        "modality": about.modality,
        "num_channels": len(channels),
        "spatial_shape": run.window,
        "dtype": "float32",
        "value_range": values,
        "is_patch_data": not run.task.get("whole_images", False),
        "channel_def": {str(number): name for number, name in enumerate(channels)},
    }


def _output(run: FinishedRun, about: About) -> dict[str, Any]:
    if not run.segments:
        channels = input_channels(run)
        out = run.plan["network"].get("out_channels", len(channels))
        named = channels if out == len(channels) else [f"channel {n}" for n in range(out)]
        return _tensor(run, about, named, [-1, 1] if run.plan.get("target", "image") == "image" else [])
    names = [str(name) for name in run.task["class_names"]]
    return {**_tensor(run, about, names, []), "format": "segmentation"}  # logits have no bounds


def _image_classes(run: FinishedRun) -> str:
    plan = run.images
    if plan.get("percentiles"):
        found = plan["percentiles"]
        scaled = f"percentiles {found['lower']:g} and {found['upper']:g} of each image"
    elif plan.get("intensity_range"):
        low, high = plan["intensity_range"]
        scaled = f"stored values {low:g} and {high:g}"
    else:
        scaled = "the ends of the range of the file's type"
    spacing = plan.get("spacing")
    at = "" if not spacing else f", resampled to {' x '.join(f'{n:g}' for n in spacing)} mm"
    return f"{counted(run.channels, 'channel')}, {scaled} become -1 and 1{at}"


def _pretrained_texts(run: FinishedRun) -> dict[str, str]:
    data, target = run.record["data"], run.plan.get("target", "image")
    corruption = (run.plan.get("corruption") or {}).get("_target_", "a corruption").rpartition(".")[2]
    return {
        "name": "Masked diffusion pre-training",
        "task": "Self-supervised pre-training on unlabelled medical images"
        if run.labels_seen == "without labels"
        else "Pre-training on medical images, some of them labelled",
        "description": f"A network that learnt to predict the {target} from images damaged by {corruption}, on "
        f"{counted(int(data.get('images', 0)), 'image')} {run.labels_seen}, in {run.plan.get('steps')} steps.",
        "pred_classes": f"the {target}, as the network predicts it from a damaged image",
        "intended_use": "A starting point for segmentation with few labels, in research. It is not a medical device "
        "and must not be used for diagnosis.",
    }


def _segmenter_texts(run: FinishedRun) -> dict[str, str]:
    task = run.task
    names = {n: task["class_names"][n] for n in task.get("classes", range(task["num_classes"]))}
    listed = ", ".join(f"{number} {name}" for number, name in names.items())
    others = ", ".join(str(name) for number, name in names.items() if number)
    head = str(task["head"].get("_target_", "")).rpartition(".")[2]
    return {
        "name": f"Segmentation of {others}",
        "task": f"Segmentation of {others} in medical images",
        "description": f"A segmenter fitted by {head} to {counted(int(task['shots']), 'labelled image')}.",
        "label_classes": f"class numbers: {listed}"
        + (" (from labels that number objects)" if task.get("label_type") == "instances" else ""),
        "pred_classes": f"logits, a channel for each class: {listed}",
        "intended_use": f"Research on the segmentation of {others} in images like those that it was fitted to. It is "
        "not a medical device and must not be used for diagnosis.",
    }


def _public(version: str | None) -> str | None:
    """Return a version without what a build adds to it: 2.13.0+cpu is 2.13.0."""
    return None if version is None else version.partition("+")[0]
