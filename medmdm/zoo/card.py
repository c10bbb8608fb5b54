"""The model card of a packed bundle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medmdm.errors import counted
from medmdm.reports.rendering import render
from medmdm.reports.summary import headline_keys
from medmdm.zoo.finished_run import FinishedRun


def model_card(run: FinishedRun, metadata: Mapping[str, Any]) -> str:
    """Return the model card as Markdown: use, data, how well on what, limits."""
    summary = run.summary
    formats = metadata["network_data_format"]
    scores = {key: summary["scores"][key] for key in headline_keys(summary["scores"])} if summary else {}
    return render(
        "model_card.md.j2",
        metadata=metadata,
        segments=run.segments,
        data=_data(run, metadata),
        scores=scores,
        unit=summary.get("distance_unit", "pixels"),
        stamp=_tested_on(summary) if summary else "",
        metrics=run.metrics,
        measured=_measured(run),
        image=formats["inputs"]["image"],
        pred=formats["outputs"]["pred"],
        limits=_limits(run),
    )


def _tested_on(summary: Mapping[str, Any]) -> str:
    cases = counted(summary["cases"]["scored"], "image")
    return f"{summary['dataset']}, {summary['section']}, {cases}. {summary['stamp']['sentence']}"


def _measured(run: FinishedRun) -> str:
    seen = run.record["data"].get("preview_crops_seen_in_training")
    which = "crops that were seen in training" if seen else "crops that were held out"
    return f"SSIM and PSNR of what was restored at t, against the undamaged {which}, when the run ended."


def _data(run: FinishedRun, metadata: Mapping[str, Any]) -> list[str]:
    data, task = run.record["data"], run.task
    told = [f"Source: {metadata['data_source']}."]
    if run.segments:
        chosen = f" ({task['subset']})" if task.get("subset") else ""
        told.append(f"Fitted to {counted(int(task['shots']), 'labelled image')}{chosen}, seed {task['seed']}.")
        ledger = run.images.get("ledger")
        seen = len(ledger["images"]) if ledger else None
        if task.get("backbone") and run.plan.get("extractor"):
            told.append(
                "Its backbone was pre-trained on images that are not known."
                if seen is None
                else f"Its backbone was pre-trained on {counted(seen, 'image')} {run.labels_seen}."
            )
    else:
        patients = int(data.get("patients") or 0)
        of = f" of {counted(patients, 'patient')}" if patients else ""
        told.append(f"Trained on {counted(int(data['images']), 'image')}{of}, {run.labels_seen}.")
    if data.get("data_list"):
        told.append(f"Data list: {data['data_list']}.")
    for key in ("licence", "citation"):
        if data.get(key):
            told.append(f"{key.capitalize()}, as the data list says: {data[key]}.")
    if data.get("hash"):
        told.append(f"SHA-256 of the decoded pixels: {data['hash']}.")
    return told


def _limits(run: FinishedRun) -> list[str]:
    limits = [str(note) for note in run.summary.get("notes", ())]
    if run.segments:
        limits.append(
            "Of images from other scanners, stains, sites or patients than those above nothing is known; medmdm infer "
            "says of each image whether it is unlike what was learnt from."
        )
    else:
        limits.append("It restores images; it segments nothing until a head is fitted to its features.")
    window = " x ".join(map(str, run.window))
    limits.append(f"models/model.ts and exports to ONNX take images of {window} pixels.")
    return limits
