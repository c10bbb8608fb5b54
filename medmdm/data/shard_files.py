"""Shards: tar files of pictures in webdataset's format, each with an index of where in it each picture is.

A shard is an uncompressed tar of ``<key>.png`` (or another kind of picture) with, where more is known, ``<key>.json``.
With the index each picture is one seek and one read away, in any order. That is why webdataset's own pipeline, whose
position is the state of its iterators, is not used for reading.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import json
import logging
import os
import shutil
import tarfile
import tempfile
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from medmdm.data.files.formats import IMAGE_SUFFIXES
from medmdm.data.files.pictures import read_image
from medmdm.data.mask_names import is_mask
from medmdm.data.selection import Selection, slice_volumes
from medmdm.data.threads import decoding_threads
from medmdm.data.transforms.spatial import as_spacing
from medmdm.data.validity import check_finite
from medmdm.errors import UserError, counted, find_user_error, refuse_full_disk, when_interrupted
from medmdm.files import atomic_file, claim, pixel_hash, sweep_temporaries
from medmdm.intact import DamagedFileError, load_record, save_record
from medmdm.progress import followed

logger = logging.getLogger(__name__)

_FORMAT = 1  # of an index
_LONGEST_TEXT = 1 << 20  # bytes of a ``.json``, and of names and other headers of a tar
_OF_OTHERS = (  # headers that say something of the next ones
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE,
)  # fmt: skip
#: What a shard's ``.json`` may say of a picture, as the entry of a data list does.
KNOWN = ("patient_id", "spacing", "magnification")


def shard_files(shards: str | os.PathLike[str] | Sequence[str]) -> list[Path]:
    """Return the tar files that a pattern names, in its order: ``"set-{000..099}.tar"``, ``"set-*.tar"`` or a list.

    Raises:
        UserError: there is none, or one does not exist.
    """
    given = [str(one) for one in ([shards] if isinstance(shards, (str, os.PathLike)) else shards)]
    found: list[Path] = []
    for one in given:
        if "://" in one or one.startswith("pipe:"):
            raise UserError(
                f"{one} is no file: shards are read by random access, from a disk that all processes share."
            )
        names = _expanded(one)
        for name in names:
            path = Path(name)
            found += sorted(path.parent.glob(path.name)) if "*" in path.name else [path]
    for path in found:
        if not path.is_file():
            raise UserError(f"the shard {path} does not exist: correct dataset_dir.")
    if not found:
        raise UserError(f"{', '.join(given)} names no shard: give tar files such as set-{{000..099}}.tar.")
    return list(dict.fromkeys(found))


def _expanded(pattern: str) -> list[str]:
    if "{" not in pattern:
        return [pattern]
    try:
        from braceexpand import braceexpand
    except ImportError as error:
        raise UserError("braces need webdataset's braceexpand: pip install 'medmdm[shards]', or use *.") from error
    return list(braceexpand(pattern))


def read_index(shard: Path) -> list[dict[str, Any]]:
    """Return where each picture of a shard is; the index beside it is made where there is none, which reads it all.

    Returns:
        ``{"name", "offset", "size", "crc32", "pixels_sha256", "channels", ...}`` each, in the order of the tar, with
        ``patient_id``, ``spacing`` and ``magnification`` where its ``.json`` says them.

    Raises:
        UserError: it is no uncompressed tar, or a picture cannot be read.
    """
    return _read_index(shard, shard.stat().st_size)


@functools.cache
def _read_index(shard: Path, size: int) -> list[dict[str, Any]]:
    path = index_path(shard)
    with contextlib.suppress(FileNotFoundError, DamagedFileError):
        content = load_record(path)
        images: Any = content.get("images")
        if content.get("format") == _FORMAT and content.get("bytes") == size and _plausible(images, size):
            return list(images)
    images = _indexed(shard)
    try:
        save_record({"format": _FORMAT, "bytes": size, "images": images}, path)
    except OSError as error:
        logger.warning("%s cannot be written (%s): the shard is read through at each start.", path, error.strerror)
    return images


def _plausible(images: Any, size: int) -> bool:
    """Whether an index may be one of ours: its digest says that it is whole, not who wrote it."""
    return isinstance(images, list) and all(
        isinstance(one, dict)
        and all(isinstance(one.get(key), str) for key in ("name", "pixels_sha256"))
        and all(type(one.get(key)) is int for key in ("offset", "size", "crc32", "channels"))
        and 0 <= one["offset"] <= one["offset"] + one["size"] <= size
        for one in images
    )


def index_path(shard: Path) -> Path:
    """Return the index of a shard: ``a.tar.index.json`` beside ``a.tar``."""
    return shard.with_name(f"{shard.name}.index.json")


def _members(shard: Path) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Return where the pictures of a shard are, and what its ``.json`` files say, by key."""
    pictures: list[dict[str, Any]] = []
    told: dict[str, dict[str, Any]] = {}
    masks = 0
    try:
        with tarfile.open(shard, "r:", tarinfo=_Header) as tar:
            for member in tar:
                _check_place(member, shard)
                folder, _, base = member.name.rpartition("/")
                stem, _, extension = base.partition(".")  # webdataset's key ends at the first dot of the name
                key = f"{folder}/{stem}"
                if not member.isreg() or base.startswith("."):
                    continue
                if extension.lower() == "json":
                    told[key] = _sidecar(tar, member, shard)
                elif f".{extension.lower()}" in IMAGE_SUFFIXES and is_mask(PurePath(member.name)):
                    masks += 1
                elif f".{extension.lower()}" in IMAGE_SUFFIXES:
                    place = {"name": member.name, "offset": member.offset_data, "size": member.size}
                    pictures.append({**place, "key": key})
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{shard} is no uncompressed tar, or it is cut off ({error}): make it again.") from error
    if masks:
        logger.info("%s: %s left out", shard, counted(masks, "mask"))
    names = [one["name"] for one in pictures]
    if len(set(names)) < len(names):
        raise UserError(f"{shard} holds two files of one name ({max(names, key=names.count)}): make it again.")
    if not pictures:
        raise UserError(f"{shard} holds no picture ({', '.join(IMAGE_SUFFIXES)}): pictures are named <key>.png.")
    return pictures, told


def _indexed(shard: Path) -> list[dict[str, Any]]:
    """Read a shard from its beginning to its end."""
    pictures, told = _members(shard)

    def look(one: Mapping[str, Any]) -> dict[str, Any]:
        content = picture_bytes(shard, one)
        with as_file(content, one, shard) as path:
            pixels = read_image(path)
            check_finite(pixels, str(path))
        known = {**one, "crc32": zlib.crc32(content), "pixels_sha256": pixel_hash(pixels), "channels": len(pixels)}
        more = told.get(known.pop("key"), {})
        return {**known, **known_of(more)}

    with decoding_threads(min(8, os.cpu_count() or 1)) as pool:
        return list(followed(pool.imap(look, pictures, 16), f"reading {shard.name}", len(pictures)))


def _sidecar(tar: tarfile.TarFile, member: tarfile.TarInfo, shard: Path) -> dict[str, Any]:
    if member.size > _LONGEST_TEXT:
        raise UserError(f"{shard}: {member.name} has {member.size:,} bytes, of {_LONGEST_TEXT:,} at most: correct it.")
    file = tar.extractfile(member)
    try:
        content = json.loads(b"" if file is None else file.read())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{shard}: {member.name} is not JSON ({error}): correct it.") from error
    known = known_of(content) if isinstance(content, dict) else {}
    as_spacing(known.get("spacing"), known.get("magnification"), f"{shard}: {member.name}")
    if not isinstance(known.get("patient_id", ""), (str, int)):
        raise UserError(f"{shard}: {member.name} gives a patient_id that is no text and no number: correct it.")
    return known


class _Header(tarfile.TarInfo):
    """A header that is refused where tarfile takes a damaged or a missing one for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Any:
        try:
            made = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if buf and not any(buf):  # the end
                raise
            raise tarfile.ReadError(str(error)) from error
        # What such a header announces is read into memory before anything is known of it.
        if made.size < 0 or (made.type in _OF_OTHERS and made.size > _LONGEST_TEXT):
            raise tarfile.ReadError(f"a header announces {made.size} bytes")
        return made


def _check_place(member: tarfile.TarInfo, shard: Path) -> None:
    """See that a member lies within its shard, before it is gone over or read.

    Raises:
        ReadError: it does not, or it is sparse, so that its bytes are not those of a file.
    """
    if member.issparse() or not 0 <= member.offset_data <= member.offset_data + member.size <= shard.stat().st_size:
        raise tarfile.ReadError(f"{member.name!r} is sparse or does not lie in it")


def picture_bytes(shard: Path, image: Mapping[str, Any]) -> bytes:
    """Read a picture's file out of a shard."""
    with open(shard, "rb") as file:
        file.seek(image["offset"])
        content = file.read(image["size"])
    if len(content) < image["size"] or zlib.crc32(content) != image.get("crc32", zlib.crc32(content)):
        advice = f"if the shard was made anew, delete {index_path(shard)}; else copy it again"
        raise UserError(f"{shard}: {image['name']} is not what its index says: {advice}.")
    return content


@contextlib.contextmanager
def as_file(content: bytes, image: Mapping[str, Any], shard: Path) -> Iterator[Path]:
    """Give a picture of a shard as a file, for decoders that want one; sentences name the shard and the picture."""
    suffix = PurePath(image["name"]).suffix
    path = scratch() / f"{os.getpid()}_{threading.get_ident()}{suffix}"
    try:
        path.write_bytes(content)
        yield path
    except Exception as error:
        user_error = find_user_error(error)
        if user_error is None:
            raise
        raise UserError(str(user_error).replace(str(path), f"{shard}: {image['name']}")) from None
    finally:
        path.unlink(missing_ok=True)


@functools.cache
def scratch() -> Path:
    """Return a folder that lives as long as this process."""
    folder = Path(tempfile.mkdtemp(prefix="medmdm-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def known_of(image: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is known of a picture besides its pixels."""
    return {key: image[key] for key in KNOWN if image.get(key) is not None}


def write_shards(
    selection: Selection, folder: str | os.PathLike[str], per_shard: int = 1000, seed: int = 0
) -> list[Path]:
    """Write the pictures that train into shards, shuffled, with their indexes.

    The same pictures give the same bytes. Files are copied as they are; keys are numbers, so that names, which may
    identify, stay behind; patients and spacing go into ``<key>.json``.

    Args:
        selection: of :func:`medmdm.data.select_training_images`.
        folder: receives ``shard-000000.tar``, ...
        per_shard: pictures of a shard; the last ones hold one less where the number does not come out.
        seed: of the order.

    Raises:
        UserError: there is a volume, a part of a picture, or a picture of several files; or the folder holds shards.
    """
    entries, folder = slice_volumes(_pictures(selection)).training, Path(folder)
    with refuse_full_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
    claim(folder)
    sweep_temporaries(folder)
    if any(folder.glob("shard-*.tar")):
        raise UserError(f"{folder} holds shards: choose another folder, or delete them.")
    if per_shard < 1:
        raise UserError(f"per_shard is {per_shard}: give 1 or more.")
    order = np.random.default_rng([seed, 12]).permutation(len(entries))
    written = []
    when_interrupted(f"{folder} holds some of the shards: delete them, and the same command writes them all.")
    for number, part in enumerate(np.array_split(order, -(-len(order) // per_shard))):
        path = folder / f"shard-{number:06d}.tar"
        with atomic_file(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for which in part:
                entry = entries[which]
                key, suffix = f"{which:09d}", PurePath(entry["image"]).suffix.lower()
                _add(tar, f"{key}{suffix}", Path(entry["image"]).read_bytes())
                if known := known_of(entry):
                    _add(tar, f"{key}.json", json.dumps(known, sort_keys=True).encode())
        read_index(path)
        written.append(path)
    return written


def _pictures(selection: Selection) -> Selection:
    for entry in selection.training:
        single = isinstance(entry["image"], str) and "region" not in entry
        if not single or PurePath(entry["image"]).suffix.lower() not in IMAGE_SUFFIXES:
            what = "shards hold whole pictures of one file each, no volumes and no parts"
            raise UserError(f"{entry['image']}: {what}; write it as pictures first.")
    return selection


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # no time and no owner: the same bytes whoever writes it
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
