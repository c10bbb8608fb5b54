"""Segmenters for other programs: ONNX, ``torch.export`` and TorchScript, each checked against the original."""

from __future__ import annotations

import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.utils import optional_import
from torch import Tensor, nn

from medmdm.artifacts.backbone import Backbone
from medmdm.artifacts.segmenter_file import load_segmenter
from medmdm.errors import UserError
from medmdm.files import atomic_write
from medmdm.heads.segmenter import Segmenter

FORMATS = {".onnx": "ONNX", ".pt2": "torch.export", ".ts": "TorchScript"}  # what the ending of a file's name asks for
TOLERANCE = 1e-4  # largest difference of a logit that an export may show
PLAN_KEY = "medmdm_plan.json"  # under this name the exported file holds the segmenter's plan as JSON

Call = Callable[[Tensor], Tensor]
Export = tuple[bytes, Callable[[bytes], Call]]  # and what reads it


def export_segmenter(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    size: Sequence[int],
    backbone: Backbone | None = None,
    trust: bool = False,
) -> float:
    """Write a segmenter in a format that needs neither medmdm nor its plan to run.

    The input is called ``image``, ``[batch, channels, *size]`` in [-1, 1], of any batch; the output is ``logits``,
    ``[batch, classes, *size]``. What was written is read back and run on a new random image; the file is only left
    where it agrees with the original to :data:`TOLERANCE`. The plan goes along (:data:`PLAN_KEY`): as metadata of ONNX,
    as an extra file of the two others.

    Args:
        source: a file of :func:`medmdm.artifacts.save_segmenter`.
        destination: the file to write, atomically; its ending chooses the format, see :data:`FORMATS`.
        size: of the images, for the export is for one size.
        backbone: as the next, see :func:`medmdm.artifacts.load_segmenter`.
        trust: see there.

    Returns:
        The largest absolute difference of a logit.

    Raises:
        UserError: an unknown ending, a package is missing, or the export differs.
    """
    destination = Path(destination)
    make = {".onnx": _onnx, ".pt2": _exported, ".ts": _script}.get(destination.suffix)
    if make is None:
        known = ", ".join(f"{ending} ({name})" for ending, name in FORMATS.items())
        raise UserError(f"{destination}: the ending of the name chooses the format: {known}.")
    if not size or min(size) < 1:
        raise UserError(f"size is {list(size)}, expected the numbers of pixels along each axis of an image.")
    segmenter, plan = load_segmenter(source, backbone, trust)
    axes = len(plan.get("task", {}).get("window") or size)
    if len(size) != axes:
        raise UserError(f"size is {list(size)}, but {source} reads images of {axes} axes: give a number for each.")
    images = torch.rand(2, channels_of(plan), *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    new = images[:1].flip(-1) * 0.9
    with torch.no_grad():
        if isinstance(segmenter, Segmenter):
            segmenter.extractor.innermost.prepare(size, images.shape[1])
        content, read = make(segmenter, images, plan)
        difference = float((read(content)(new) - segmenter(new)).abs().max())
    if not difference <= TOLERANCE:
        reason = f"its logits differ by {difference:.1e} from those of {source}"
        advice = f"try another format than {FORMATS[destination.suffix]}"
        raise UserError(f"{destination}: not written, because {reason}; {advice}.")
    atomic_write(destination, content)
    return difference


def _script(segmenter: nn.Module, images: Tensor, plan: Mapping[str, Any]) -> Export:
    with warnings.catch_warnings():
        # Sizes become constants, which is what is wanted.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(segmenter, images, check_trace=False)
        buffer = io.BytesIO()
        torch.jit.save(traced, buffer, _extra_files={PLAN_KEY: json.dumps(plan)})
        return buffer.getvalue(), lambda content: torch.jit.load(io.BytesIO(content))


def _program(segmenter: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    """Export with an open batch size, or with one image where the network fixes it."""
    try:
        return torch.export.export(segmenter, (images,), dynamic_shapes={"image": {0: torch.export.Dim("batch")}})
    except torch._dynamo.exc.UserError:
        logging.getLogger(__name__).warning("This network fixes the batch size: the export is for single images.")
        return torch.export.export(segmenter, (images[:1],))


def _exported(segmenter: nn.Module, images: Tensor, plan: Mapping[str, Any]) -> Export:
    buffer = io.BytesIO()
    torch.export.save(_program(segmenter, images), buffer, extra_files={PLAN_KEY: json.dumps(plan)})
    return buffer.getvalue(), lambda content: torch.export.load(io.BytesIO(content)).module()


def _onnx(segmenter: nn.Module, images: Tensor, plan: Mapping[str, Any]) -> Export:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        if not optional_import(name)[1]:
            raise UserError(f"ONNX needs the package {name}: install it with pip install onnx onnxscript onnxruntime.")
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)  # it warns of torchvision, which is not needed
    names: Any = {"input_names": ["image"], "output_names": ["logits"]}
    try:
        program = torch.onnx.export(_program(segmenter, images), **names, dynamo=True, verbose=False)
    finally:
        exporter.setLevel(level)
    assert program is not None
    program.model.metadata_props[PLAN_KEY] = json.dumps(plan)

    def read(content: bytes) -> Call:
        session = optional_import("onnxruntime")[0].InferenceSession(content, providers=["CPUExecutionProvider"])
        return lambda image: torch.from_numpy(session.run(["logits"], {"image": image.numpy()})[0])

    return program.model_proto.SerializeToString(), read


def channels_of(plan: Mapping[str, Any]) -> int:
    """Return the number of channels of the images that a segmenter reads."""
    for part in (plan.get("backbone", {}), plan.get("network", {}), plan.get("backbone", {}).get("network", {})):
        for key in ("channels", "in_channels"):
            if isinstance(part.get(key), int):
                return int(part[key])
    raise UserError("The segmenter's plan does not say how many channels its images have (backbone#channels).")
