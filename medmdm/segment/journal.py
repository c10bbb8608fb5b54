"""What an inference leaves in its folder besides masks: its images, what became of them, and pictures to look at."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medmdm.data.reading import LoadedCase
from medmdm.errors import UserError
from medmdm.files import file_hash, text_hash
from medmdm.intact import save_record
from medmdm.reports.pseudonyms import Pseudonyms
from medmdm.runs.folder import RunFolder
from medmdm.segment.evaluation import Predicted
from medmdm.segment.formats.base import RunFormat
from medmdm.segment.likeness import appearance, unlike
from medmdm.segment.overlays import draw_overlay

logger = logging.getLogger(__name__)

_CASE = "*"  # stands for the case's name in the names of its files


@dataclass(frozen=True)
class Noted:
    """What the journal says of a case that was segmented; a worker may have found it.

    Args:
        name: of the case.
        patient: whom it is of, in clear text.
        pixels_sha256: of the image.
        spacing: mm between pixels, where known.
        files: relative to the folder.
        departures: where it is unlike what was learnt from, in words.
        facts: further ones.
    """

    name: str
    patient: str | None = field(repr=False)
    pixels_sha256: str
    spacing: list[float] | None
    files: list[str]
    departures: list[str]
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        case: LoadedCase,
        found: Predicted,
        folder: str | os.PathLike[str],
        known: Mapping[str, Any] | None,
        overlay: bool,
        seen: LoadedCase | None = None,
        **facts: Any,
    ) -> Noted:
        """Look at a case; ``known`` as in :class:`Journal`, ``overlay``: whether to draw one into the folder.

        ``seen`` is what of it is compared, the tissue of a slide; None for all.
        """
        files = list(found.files.values())
        if overlay:
            files.append(draw_overlay(Path(folder), case, found.mask, found.instances))
        departures = [] if known is None else unlike(appearance(seen or case), known)
        spacing = None if case.spacing is None else [float(n) for n in case.spacing]
        patient = case.entry.get("patient_id")
        patient = None if patient is None else str(patient)
        return cls(case.name, patient, case.hashes[0], spacing, files, departures, facts)


@dataclass
class Journal:
    """Note in ``run.json`` under ``"images"`` what was segmented; patients by numbers, see :class:`Pseudonyms`.

    Of an image that was segmented before, files that this time are not written stay only if its pixels are the same.

    Args:
        run: the folder, open.
        entries: of the cases that are to be segmented.
        known: what the images looked like that the segmenter learnt from, see :func:`medmdm.segment.likeness.seen`;
            None where its file does not say.
    """

    run: RunFolder
    entries: Sequence[Mapping[str, Any]] = field(repr=False)
    known: Mapping[str, Any] | None = field(repr=False)
    images: dict[str, dict[str, Any]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self.before = {image["case"]: image for image in self.run.record.get("images", ())}
        patients = (entry.get("patient_id") for entry in self.entries)
        self.pseudonyms = Pseudonyms([None if patient is None else str(patient) for patient in patients])
        self.told = 0
        if self.known is None:
            missing = "its file does not say what its training images looked like (medmdm 0.2 and later write that)"
            logger.info("Images are not compared with what the segmenter learnt from: %s.", missing)

    def note(self, one: Noted) -> None:
        """Note a case that was segmented; warn, in one sentence, where it is unlike what was learnt from."""
        name = self.pseudonyms.clean(one.name)
        if one.departures:
            self.told += 1
            logger.warning("%s is unlike the images that were learnt from: %s.", one.name, "; ".join(one.departures))
        written = [file.replace(f"/{one.name}", f"/{_CASE}", 1) for file in one.files]
        earlier = self.before.get(name, {})
        if earlier.get("pixels_sha256") == one.pixels_sha256:
            written += [file for file in earlier["files"] if file not in written]
        else:
            for file in set(earlier.get("files", ())) - set(written):
                stale = self.run.path / file.replace(f"/{_CASE}", f"/{one.name}", 1)
                stale.unlink(missing_ok=True)
                logger.info("%s was removed: it was made from another image of this name.", stale)
        self.images[name] = {
            "case": name,
            "patient": self.pseudonyms.name(one.patient),
            "pixels_sha256": one.pixels_sha256,
            "spacing": one.spacing,
            "files": written,
            "unlike_training": one.departures,
            **one.facts,
        }

    def merged(self, form: RunFormat, pieces: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """Return what a file for all cases holds: what was found now, and before in images that were not read again.

        Args:
            form: of the file.
            pieces: found now, by case; None if it was not asked for: then those of the same pixels stay.

        Returns:
            By case; None without a file that is there or asked for.
        """
        path = self.run.path / form.file
        if not path.is_file():
            return pieces or None
        try:
            old = form.read(path)
        except (OSError, ValueError, KeyError) as error:  # pandas' and json's own errors are ValueErrors
            raise UserError(f"{path} is damaged ({error}): delete it, and the same command writes it anew.") from error
        digests = {name: image["pixels_sha256"] for name, image in self.images.items()}
        replaced = {
            name
            for name, digest in digests.items()
            if pieces is not None or digest != self.before.get(name, {}).get("pixels_sha256")
        }
        kept = {name: piece for name, piece in old.items() if self.pseudonyms.clean(name) not in replaced}
        digests_of_file = self.run.record.get("tables", {}).get(form.file)
        if kept and digests_of_file and file_hash(path) not in digests_of_file:
            raise UserError(f"{path} is damaged (it is not what was written): delete it, and segment its images again.")
        return {**kept, **(pieces or {})}

    def announce(self, file: str, text: str) -> None:
        """Note the digest of a file for all cases that will be written; the one before stays, for a kill between."""
        tables = self.run.record.setdefault("tables", {})
        tables[file] = [*tables.get(file, []), text_hash(text)][-2:]
        self.save()

    def save(self) -> None:
        """Write the record, also of a run that is interrupted."""
        kept = {**self.before, **self.images}
        counts = {"segmented": len(self.images), "unlike_training": self.told}
        self.run.record |= {"data": counts, "images": list(kept.values())}
        save_record(self.run.record, self.run.path / "run.json")
