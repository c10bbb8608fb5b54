"""The cases that a head learns from, and those that it is tested on."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medmdm.data.files.formats import is_volume
from medmdm.data.files.pictures import image_size
from medmdm.data.files.slides import is_slide
from medmdm.data.identity import data_identity
from medmdm.data.lists import SECTIONS, image_names
from medmdm.data.reading import CaseReader, LoadedCase
from medmdm.data.selection import Selection
from medmdm.data.splits import default_rule
from medmdm.data.transforms.augmentation import modality_of
from medmdm.errors import UserError
from medmdm.heads.task import Reading, Task
from medmdm.metrics.baselines import mean_mask
from medmdm.progress import followed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelledData:
    """The cases that a head learns from, and those that it is tested on.

    Args:
        reader: reads cases as the backbone was trained; knows the data set.
        section: that is tested.
        shots: number of training cases; None for all.
        rule: which: ``"paper"`` or ``"seeded"``, see :func:`medmdm.data.subset`; None for the paper's rule on its two
            sets, GlaS and MoNuSeg, and the seeded one on all others.
        draw: seed of the subset.
        unlabelled_gib: memory, in GiB, that the images of unlabelled cases may take; of more of them a random part is
            read.

    Raises:
        UserError: the section is empty, there are fewer training cases than shots, or the memory is not above 0.
    """

    reader: CaseReader
    section: str = "test"
    shots: int | None = None
    rule: str | None = None
    draw: int = 0
    unlabelled_gib: float = 4.0

    def __post_init__(self) -> None:
        if not isinstance(self.unlabelled_gib, Real) or self.unlabelled_gib is True or not self.unlabelled_gib > 0:
            raise UserError(f"unlabelled_gib must be a number above 0, got {self.unlabelled_gib!r}.")
        if self.rule is None:
            known = self.cases.data_list
            object.__setattr__(self, "rule", default_rule(None if known is None else known.name))
        if not getattr(self.cases, self.section, None) and not self.cross_validated:
            others = ", ".join(name for name in SECTIONS if getattr(self.cases, name)) or "none"
            need = f"correct the data list or choose another section (with cases: {others})"
            raise UserError(f"There is no {self.section} case to evaluate: {need}.")
        if self.shots is not None:
            self.draw_support(self.shots, self.draw)

    @property
    def cases(self) -> Selection:
        """The data set."""
        return self.reader.cases

    @property
    def modality(self) -> str:
        """``"histology"`` or ``"radiology"``, see :func:`medmdm.data.transforms.augmentation.modality_of`."""
        return self._modality(self.reader.plan.get("channels") or 3)

    def _modality(self, channels: int) -> str:
        known, first = self.cases.data_list, next(iter(self.cases.training or self.entries()))
        told = "" if known is None else json.dumps(known.information.get("modality", ""))
        return modality_of(told, is_volume(image_names(first)[0]), channels)

    @property
    def cross_validated(self) -> bool:
        """Whether there is no test case, so that labelled training cases are left out in turn."""
        return self.section == "test" and not self.cases.test and bool(self.cases.training)

    @property
    def subset(self) -> dict[str, Any] | None:
        """How the training cases were chosen, None for all of them."""
        return None if self.shots is None else {"rule": self.rule, "draw": self.draw}

    def draw_support(self, shots: int, draw: int) -> Sequence[dict[str, Any]]:
        """Return the entries of so many training cases."""
        return self.cases.subset(shots, str(self.rule), draw).training

    def entries(self) -> list[dict[str, Any]]:
        """Return the entries of all cases that are used."""
        return [*self.cases.training, *self.cases.validation, *self.cases.test]

    def support(self) -> list[LoadedCase]:
        """Read the training cases."""
        entries = self.cases.training if self.shots is None else self.draw_support(self.shots, self.draw)
        return [self.reader.read(entry) for entry in followed(entries, "reading labelled images")]

    def tested(self) -> list[LoadedCase]:
        """Read the cases to test on."""
        entries = followed(getattr(self.cases, self.section), "reading images to test on")
        return [self.reader.read(entry, in_parts=True) for entry in entries]

    def each_other(self, support: Sequence[LoadedCase]) -> Iterator[LoadedCase]:
        """Read the training cases that are not in the support, and the unlabelled cases, one by one without labels."""
        return self._without_labels(self._other_entries(support))

    def others(self, support: Sequence[LoadedCase]) -> list[LoadedCase]:
        """Return what :meth:`each_other` reads; where all would take more than ``unlabelled_gib`` a random part of it.

        The part is the same each time. A picture that is too large is not read at all.
        """
        entries = self._other_entries(support)
        found: dict[int, LoadedCase] = {}
        left = self.unlabelled_gib * 2**30
        order = [n for n in np.random.default_rng(0).permutation(len(entries)).tolist() if _least(entries[n]) <= left]
        for number, case in zip(order, self._without_labels([entries[n] for n in order]), strict=True):
            size = sum(one.image.nbytes + one.label.nbytes for one in case.examples)
            if size <= left:
                found[number], left = case, left - size
            elif found:
                break
        if len(found) < len(entries):
            logger.warning(
                "Unlabelled images: a random %d of %d are used, which fit into data#unlabelled_gib (%g GiB).",
                *(len(found), len(entries), self.unlabelled_gib),
            )
        return [found[number] for number in sorted(found)]

    def _other_entries(self, support: Sequence[LoadedCase]) -> list[dict[str, Any]]:
        names = {case.name for case in support}
        rest = [entry for entry in self.cases.training if str(entry["case"]) not in names]
        # Slides are segmented in parts, and never held in memory.
        return [*rest, *(entry for entry in self.cases.unlabeled if not is_slide(image_names(entry)[0]))]

    def _without_labels(self, entries: Sequence[Mapping[str, Any]]) -> Iterator[LoadedCase]:
        for entry in followed(entries, "reading unlabelled images"):
            yield self.reader.read({key: value for key, value in entry.items() if key != "label"})

    def task(
        self,
        support: Sequence[LoadedCase],
        others: Sequence[LoadedCase],
        reading: Reading,
        seed: int,
        device: torch.device,
    ) -> Task:
        """Return what is to be learnt from the support, with the images of other cases as unlabelled ones."""
        examples = [example for case in support for example in case.examples]
        unlabelled = [example.image for case in others for example in case.examples]
        modality, classes = self._modality(len(examples[0].image)), self.cases.classes
        return Task(examples, self.cases.num_classes, reading, seed, device, unlabelled, modality, classes)

    def mean_mask(self, support: Sequence[LoadedCase], tested: Sequence[LoadedCase]) -> NDArray[np.uint8] | None:
        """Return the mean of the support's masks, None where it and the cases to test on are not all of one grid.

        That is one shape, and for volumes one spacing.
        """
        first = support[0]
        if any(case.shape != first.shape for case in [*support, *tested]):
            return None
        spacings = [case.spacing for case in [*support, *tested] if case.slicing is not None]
        if not np.allclose(np.array(spacings, float), np.array(spacings[:1], float), rtol=1e-3):
            return None
        labels = [case.truth for case in support if case.truth is not None]
        return mean_mask(labels, self.cases.num_classes, self.cases.ignore)

    def identity(
        self, tested: Sequence[LoadedCase], training: Sequence[LoadedCase] = (), others: Sequence[LoadedCase] = ()
    ) -> dict[str, Any]:
        """Return what a run's record says of the images: hashes of their pixels and order, and how many there are."""
        left_out = "test" if self.cross_validated else None
        read = {"training": training, self.section: tested}
        return data_identity({name: cases for name, cases in read.items() if cases and name != left_out}, others)

    def lacking(self, support: Sequence[LoadedCase], draw: int) -> list[str]:
        """Return a sentence for each class that a head cannot learn from these cases."""
        seen = {int(number) for case in support for example in case.examples for number in example.label.unique()}
        which = f"none of the {len(support)} labelled images holds class"
        which = which if len(support) > 1 else "the labelled image does not hold class"
        absent = (number for number in self.cases.classes if number not in seen)
        return [f"{which} {number} {self.cases.class_names[number]} (draw {draw})" for number in absent]

    def announce(self) -> None:
        """Log what was chosen, and what the user should act on."""
        self.cases.announce()


def _least(entry: Mapping[str, Any]) -> int:
    """Return the bytes that a picture takes at least while it is read, 0 for a volume: of one channel of floats."""
    name = image_names(entry)[0]
    return 0 if is_volume(name) else 4 * math.prod(image_size(name))
