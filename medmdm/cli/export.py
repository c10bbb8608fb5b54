"""The command ``export``: write a segmenter for other programs."""

from __future__ import annotations

import argparse

SUMMARY = "write a segmenter as ONNX, torch.export or TorchScript, and check it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``export`` to its parser."""
    parser.add_argument("source", help="the segmenter.pt")
    parser.add_argument("destination", help="the file to write: .onnx, .pt2 (torch.export) or .ts (TorchScript)")
    parser.add_argument("--size", type=int, nargs="+", required=True, metavar="N", help="pixels along each axis")
    parser.add_argument("--backbone", help="its model.pt, where the segmenter was saved without")


def run(args: argparse.Namespace) -> None:
    """Run ``export`` with parsed arguments."""
    from medmdm.artifacts.export import export_segmenter

    difference = export_segmenter(args.source, args.destination, args.size, args.backbone)
    print(f"wrote {args.destination}: on a new image its logits differ by at most {difference:.1e} from the original's")
