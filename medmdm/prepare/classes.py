"""Classes as the user names, merges and chooses them (``--classes``), and tables of their colours."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medmdm.data.files.pictures import read_image
from medmdm.data.validity import ImageGrid, check_same_grid
from medmdm.errors import UserError, nearest
from medmdm.files import text_of
from medmdm.labels import IGNORE
from medmdm.prepare.release import Release, SourceFile

BACKGROUND, IGNORED, REST = "background", "ignore", "rest"
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Classes:
    """What ``--classes`` says.

    Args:
        sources: what becomes each class: whole numbers or names of the source, colours as ``#rrggbb``, or ``rest``.
    """

    sources: Mapping[str, tuple[str, ...]]

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Classes:
        """Read ``["background=0", "gland=1,2"]``.

        Raises:
            UserError: a text has another form, a name or a value comes twice, or there is no background.
        """
        sources: dict[str, tuple[str, ...]] = {}
        for text in texts:
            name, _, values = text.partition("=")
            name, parts = name.strip(), tuple(part.strip() for part in values.split(","))
            if not name or not all(parts):
                raise UserError(f"--classes has {text!r}: give NAME=VALUES, such as background=0 gland=1,2.")
            if name in sources:
                raise UserError(f"--classes names {name!r} twice: give all its values at once, as in {name}=1,2.")
            sources[name] = parts
        every = [value for values in sources.values() for value in values]
        twice = [value for value in every if every.count(value) > 1]
        if twice:
            raise UserError(f"--classes gives {twice[0]!r} to two classes: a value belongs to one.")
        if BACKGROUND not in sources or not set(sources) - {BACKGROUND, IGNORED}:
            raise UserError("--classes must name the background and another class, as in background=0 gland=1,2.")
        return cls(sources)

    @property
    def labels(self) -> dict[str, int]:
        """Number by name, for the data list; pixels to ignore have 255 and are no class."""
        return {BACKGROUND: 0} | {name: i for i, name in enumerate(self._foreground, 1)}

    @property
    def colours(self) -> ColourTable | None:
        """The table of colours where values are such; each colour is a number of its own."""
        found = [value for values in self.sources.values() for value in values if value.startswith("#")]
        for value in found:
            if not re.fullmatch("#[0-9a-fA-F]{6}", value):
                raise UserError(f"--classes has the colour {value!r}: give six hexadecimal digits, such as #fa3253.")
        colours = {value: tuple(bytes.fromhex(value[1:])) for value in found}
        return ColourTable("--classes", colours) if found else None  # type: ignore[arg-type]

    def numbers(self, known: Mapping[str, int]) -> tuple[dict[int, int], int | None]:
        """Return the new number of each old one, and that of all others if there is one.

        Args:
            known: names of the source.

        Raises:
            UserError: a value is neither a number nor a name of the source.
        """
        new: dict[int, int] = {}
        rest = None
        for name, values in self.sources.items():
            number = IGNORE if name == IGNORED else self.labels[name]
            for value in values:
                if value in known:
                    new[known[value]] = number
                elif value == REST:
                    rest = number
                elif value.isdecimal():
                    new[int(value)] = number
                else:
                    among = f" among {', '.join(known)}" if known else ""
                    problem = f"--classes has the value {value!r}{nearest(value, known)}, which is no number or name"
                    raise UserError(f"{problem}{among}: correct it.")
        return new, rest

    def renumber(self, array: np.ndarray, known: Mapping[str, int], name: str) -> np.ndarray:
        """Return a mask in the new numbers; pixels of 255 stay ignored unless they are named.

        Args:
            array: whole numbers.
            known: names of the source.
            name: of the mask's file.

        Raises:
            UserError: the mask holds a number that is not named.
        """
        new, rest = self.numbers(known)
        new.setdefault(IGNORE, IGNORE)
        found, inverse = np.unique(array, return_inverse=True)
        unknown = [str(value) for value in found.tolist() if value not in new]
        if unknown and rest is None:
            raise UserError(
                f"{name} holds {', '.join(unknown[:8])}, which --classes does not name: add it to a class, to "
                f"{IGNORED}, or give one class all others, as in {BACKGROUND}={REST}."
            )
        table = np.array([new.get(value, rest) for value in found.tolist()], np.uint16)
        return table[inverse].reshape(array.shape)

    @property
    def _foreground(self) -> list[str]:
        return [name for name in self.sources if name not in (BACKGROUND, IGNORED)]


@dataclass(frozen=True)
class ColourTable:
    """Which colour is which class.

    Args:
        shown: where it stands.
        colours: ``(red, green, blue)``, 0 to 255, by name.
    """

    shown: str
    colours: Mapping[str, Colour]

    @property
    def names(self) -> dict[str, int]:
        """Number by name: 0 is black or what is named background, the others follow in the order of the table."""
        background = next((name for name in self.colours if name.lower() == BACKGROUND), None)
        black = next((name for name, colour in self.colours.items() if colour == (0, 0, 0)), None)
        first = background or black or BACKGROUND
        return {first: 0} | {name: i for i, name in enumerate((n for n in self.colours if n != first), 1)}

    def read(self, mask: SourceFile, shape: tuple[int, ...], image: SourceFile) -> np.ndarray:
        """Return ``[H, W]`` numbers of a coloured mask.

        Raises:
            UserError: it has a colour that the table does not list, or another size than its image.
        """
        packed = read_colours(mask, shape, image)
        number = {_pack(colour): self.names[name] for name, colour in self.colours.items()}
        number.setdefault(0, 0)  # black is background where no class has it
        found, inverse = np.unique(packed, return_inverse=True)
        unknown = [value for value in found.tolist() if value not in number]
        if unknown:
            shown = ", ".join(f"#{value:06x}" for value in unknown[:4]) + (", …" if len(unknown) > 4 else "")
            raise UserError(
                f"{mask.shown} has {shown}, and {self.shown} lists no such colour: complete the list, or save the mask "
                "without smoothing and without loss (PNG) if its colours are mixed at edges."
            )
        return np.array([number[value] for value in found.tolist()], np.uint16)[inverse].reshape(packed.shape)


def read_colours(mask: SourceFile, shape: tuple[int, ...], image: SourceFile) -> np.ndarray:
    """Return ``[H, W]`` colours of a mask as ``0xrrggbb``; grey is a colour too.

    Raises:
        UserError: it has more than 8 bits, or another size than its image.
    """
    with mask.local() as path:
        array = read_image(path)
    if array.dtype not in (np.uint8, bool):
        raise UserError(f"{mask.shown} is {array.dtype}, but colours of classes or objects have 8 bits: convert it.")
    check_same_grid(ImageGrid(array.shape[1:]), ImageGrid(shape), mask.shown, f"its image {image.shown}")
    red, green, blue = np.broadcast_to(array, (3, *array.shape[1:])).astype(np.uint32)
    return (red << 16) | (green << 8) | blue


def find_colour_table(release: Release) -> ColourTable | None:
    """Read the table of colours in a release, if there is one.

    CVAT's ``labelmap.txt`` has lines ``nucleus:250,50,83::``, ``label_colors.txt`` of CamVid ``250 50 83 nucleus``, and
    Supervisely's ``obj_class_to_machine_color.json`` is ``{"nucleus": [1, 1, 1]}``.

    Raises:
        UserError: it cannot be read, or two of them differ.
    """
    tables = []
    for file in release.files:
        reader = _TABLES.get(file.path.name.lower())
        if reader is None:
            continue
        with file.open() as opened:
            content = opened.read(1 << 20)
        try:
            colours = reader(text_of(content))
            if not all(len(colour) == 3 and all(0 <= c < 256 for c in colour) for colour in colours.values()):
                raise ValueError("colours have three numbers from 0 to 255")
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{file.shown} is no table of colours ({error}): correct or remove it.") from error
        if len(set(colours.values())) < len(colours):
            raise UserError(f"{file.shown} gives one colour to two classes: give each its own.")
        tables.append(ColourTable(file.shown, colours))
    for table in tables[1:]:
        if table.colours != tables[0].colours:
            raise UserError(f"{tables[0].shown} and {table.shown} differ: prepare their folders one by one.")
    return tables[0] if tables and tables[0].colours else None


def _cvat(text: str) -> dict[str, Colour]:
    rows = [line.strip().split(":") for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return {row[0]: _colour(row[1].split(",")) for row in rows}


def _camvid(text: str) -> dict[str, Colour]:
    rows = [line.split(maxsplit=3) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return {row[3].strip() if len(row) > 3 else "": _colour(row[:3]) for row in rows}


def _supervisely(text: str) -> dict[str, Colour]:
    return {str(name): _colour(colour) for name, colour in json.loads(text).items()}


_TABLES = {
    "labelmap.txt": _cvat, "label_colors.txt": _camvid, "obj_class_to_machine_color.json": _supervisely,
}  # fmt: skip


def _colour(parts: Sequence[Any]) -> Colour:
    return tuple(int(part) for part in parts)  # type: ignore[return-value]


def _pack(colour: Colour) -> int:
    return (colour[0] << 16) | (colour[1] << 8) | colour[2]
