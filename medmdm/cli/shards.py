"""The command ``shards``: the images of a folder or a data list as tar files, for pre-training on very many."""

from __future__ import annotations

import argparse

SUMMARY = "write images to pre-train on into shards, tar files in webdataset's format"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``shards`` to its parser."""
    parser.add_argument("dataset_dir", metavar="DIR", help="the folder of the images")
    parser.add_argument("out", metavar="OUT", help="the folder that receives shard-000000.tar, ...")
    parser.add_argument("--data_list", metavar="DATALIST", help="a data list, of which what trains is taken")
    parser.add_argument("--per_shard", type=int, default=1000, metavar="N", help="images of a shard (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another order (default: 0)")


def run(args: argparse.Namespace) -> None:
    """Run ``shards`` with parsed arguments and print what came out."""
    from medmdm.data.selection import select_training_images
    from medmdm.data.shard_files import write_shards
    from medmdm.errors import counted
    from medmdm.files import expanded

    selection = select_training_images(expanded(args.dataset_dir), args.data_list)
    written = write_shards(selection, expanded(args.out), args.per_shard, args.seed)
    print(f"{counted(len(selection.training), 'picture')} in {counted(len(written), 'shard')}: {written[0].parent}")
