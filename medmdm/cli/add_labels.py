"""The command ``add-labels``: see :func:`medmdm.data.added_labels.add_labels`."""

from __future__ import annotations

import argparse
from itertools import count

from medmdm.errors import UserError
from medmdm.files import expanded

SUMMARY = "make labels of masks that a person drew or corrected: their cases become training cases of the data list"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``add-labels`` to its parser."""
    parser.add_argument("data_list", metavar="LIST", help="a JSON data list, or a folder with dataset.json")
    parser.add_argument("folder", metavar="FOLDER", help="the masks, named as mdm_segment names them in applied/")
    parser.add_argument("--dataset_dir", metavar="DIR", help="folder of the images; default: the data list's folder")
    parser.add_argument(
        "--out", metavar="FILE", help="write the new list here; default: LIST, which is kept as LIST_before_labels.json"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace FILE where it exists and differs")


def run(args: argparse.Namespace) -> None:
    """Run ``add-labels`` with parsed arguments and print what changed."""
    from medmdm.data.added_labels import add_labels
    from medmdm.data.folders import named_list
    from medmdm.data.lists import load_data_list
    from medmdm.files import atomic_write, refuse_to_replace

    path = named_list(args.data_list)
    data_list = load_data_list(path)
    if data_list.shipped:
        raise UserError(f"{data_list.title} stays as it is: make a list of your own (python -m medmdm prepare).")
    root = path.parent if args.dataset_dir is None else expanded(args.dataset_dir)
    labels = add_labels(data_list, expanded(args.folder), root)
    if labels.added or labels.replaced:
        out = path if args.out is None else expanded(args.out)
        if args.out is None:
            content = path.read_bytes()
            names = (f"{path.stem}_before_labels{'' if n == 1 else f'_{n}'}{path.suffix}" for n in count(1))
            copies = (path.with_name(name) for name in names)
            kept = next(copy for copy in copies if not copy.exists() or copy.read_bytes() == content)
            atomic_write(kept, content)
            print(f"{kept}: the list as it was")
        elif not args.overwrite:
            refuse_to_replace(out, labels.text)
        labels.write(out, root)
        print(f"{out}: written")
    print("\n".join(labels.sentences))
