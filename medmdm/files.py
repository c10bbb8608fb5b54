"""Files: written whole or not at all and by one process, hashes of contents, and what comes with the package."""

from __future__ import annotations

import codecs
import contextlib
import errno
import hashlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np

from medmdm.errors import UserError, refuse_full_disk

if TYPE_CHECKING:  # the command line starts without torch, which takes seconds
    import pandas as pd
    from torch import Tensor

logger = logging.getLogger(__name__)

TEMPORARY_SUFFIX = ".part"
#: In a folder of masks or pictures that medmdm wrote: images are not looked for there.
OUTPUTS_MARK = ".medmdm_outputs"
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open ``path`` for writing so that a reader sees the old file or the whole new one, never a part.

    The bytes go to a temporary file in the same folder, are flushed to the disk, and the file is renamed; after an
    exception the temporary file is deleted and the old one stays. Missing parent folders are made.

    Raises:
        FullDiskError: there is no space for it.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}{TEMPORARY_SUFFIX}")
    with refuse_full_disk(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)  # a full disk would keep gigabytes of it
            raise


def atomic_write(path: str | os.PathLike[str], content: bytes | str) -> None:
    """Write ``content`` (bytes, or text as UTF-8) to ``path``, see :func:`atomic_file`."""
    with atomic_file(path) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


def refuse_to_replace(path: Path, content: str) -> None:
    """Refuse to write over a file that holds something else.

    Raises:
        UserError: naming it and the option that allows it.
    """
    if path.exists() and (not path.is_file() or path.read_bytes() != content.encode("utf-8")):
        raise UserError(f"{path} exists and differs: give another name or pass --overwrite.")


def save_torch(content: Any, path: str | os.PathLike[str]) -> None:
    """``torch.save`` to ``path``, atomically; equal contents under two names are equal bytes."""
    import torch

    with atomic_file(path) as file:
        torch.save(content, file)  # torch.save(path) puts the file's name into the archive


def save_json(content: Any, path: str | os.PathLike[str]) -> None:
    """Write ``content`` as indented JSON, atomically; NaN and infinities are refused (they are not JSON)."""
    atomic_write(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return a path with ``~`` as the home folder; a folder whose name begins so, and no user's, stays what it is."""
    return Path(os.path.expanduser(path))


def local_path_name(text: str) -> str | None:
    r"""Return the last name of a text that is a whole path of somebody's computer; None of any other text.

    Examples:
        >>> local_path_name("/data/ann/model.pt"), local_path_name(r"D:\ann\model.pt"), local_path_name("T:umour")
        ('model.pt', 'model.pt', None)
    """
    windows, plain = PureWindowsPath(text), PurePosixPath(text)
    if windows.is_absolute() or (windows.drive and "\\" in text):
        return windows.name
    return plain.name if plain.is_absolute() or text.startswith("~") else None


def text_of(content: bytes) -> str:
    """Return a text as programs write it: UTF-8 with a byte order mark (Notepad, Excel) or without, UTF-16 with one.

    Raises:
        UnicodeDecodeError: it is neither.
    """
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if marked else "utf-8-sig")


def delimiter_of(table: str) -> str:
    """Return what parts the cells of a CSV's first line: Excel writes ``;``, and decimal commas, in many languages."""
    first = table.partition("\n")[0]
    return max(",;\t", key=first.count)


def no_formula(text: str) -> str:
    """Return the text of a CSV cell with an apostrophe before what a spreadsheet would run as a formula.

    That is text that begins with ``=``, ``+``, ``-``, ``@`` or a control character and is no number.
    """
    if not text.startswith(_FORMULA):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


def plain_cell(text: str) -> str:
    """Return what :func:`no_formula` was given."""
    return text[1:] if text.startswith("'") and text[1:].startswith(_FORMULA) else text


def table_text(table: pd.DataFrame) -> str:
    """Return a table as the text of a CSV file without its index, as :func:`no_formula` wants it."""
    texts = table.select_dtypes(exclude="number").columns
    safe = {str(key): table[key].map(lambda v: no_formula(v) if isinstance(v, str) else v) for key in texts}
    return table.assign(**safe).to_csv(index=False)


def sweep_temporaries(folder: str | os.PathLike[str], seconds: float = 0) -> None:
    """Delete what killed :func:`atomic_write` left in a folder (not below it).

    ``seconds`` is the age from which a file counts as left behind, where other processes may be writing.
    """
    for leftover in Path(folder).glob(f".*{TEMPORARY_SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):
            if not seconds or time.time() - leftover.stat().st_mtime > seconds:
                leftover.unlink()


def mark_outputs(folder: Path) -> None:
    """Make a folder of outputs, and see that a later search for images in a folder above leaves it out.

    What a killed run left half-written in it is deleted.
    """
    with refuse_full_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        sweep_temporaries(folder)
        (folder / OUTPUTS_MARK).touch()


#: Folders that this process writes to, by device and inode, and the descriptors that hold them.
_CLAIMED: dict[tuple[int, int], int] = {}


def claim(folder: str | os.PathLike[str]) -> None:
    """Make this process the only one that writes to a folder, until it ends, however it ends.

    The folder itself is locked, so that nothing is left in it; on a file system that wants a file to lock (NFS), and on
    Windows, it is ``.lock`` in it. Of the processes of a torchrun the main one claims for all; a folder that does not
    exist is not claimed.

    Raises:
        UserError: another process has claimed it.
    """
    folder = Path(folder)
    if not is_main_process() or not folder.is_dir():
        return
    status = folder.stat()
    identity = status.st_dev, status.st_ino
    if identity in _CLAIMED:
        return
    try:
        _CLAIMED[identity] = _locked(folder)
    except BlockingIOError as error:
        raise UserError(
            f"another process is writing to {folder}: wait until it ends, stop it, or choose another folder."
        ) from error
    except OSError as error:
        logger.warning("%s cannot be locked (%s): see that no other process writes to it.", folder, error.strerror)


def _locked(folder: Path) -> int:
    """Return a descriptor that holds the lock of a folder until it is closed, at the latest by the system."""
    if sys.platform == "win32":
        import msvcrt

        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            os.close(handle)
            raise BlockingIOError from error
        return handle
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            os.close(handle)
            handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise
    return handle


def _release_in_child() -> None:
    """A loader's worker must not hold the folder of a run that was killed."""
    while _CLAIMED:
        os.close(_CLAIMED.popitem()[1])


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_in_child)


def file_hash(path: Path) -> str:
    """Return the hash of a file's bytes."""
    with open(path, "rb") as file:
        return stream_hash(file)


def stream_hash(file: IO[bytes]) -> str:
    """Return the hash of what is left to read of an open file."""
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def text_hash(text: str) -> str:
    """Return the hash of a text as UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def lines_hash(lines: Iterable[str]) -> str:
    """Return one hash of several texts, whatever their order."""
    return text_hash("\n".join(sorted(lines)))


def pixel_hash(array: np.ndarray) -> str:
    """Return the hash of decoded pixels ``[C, *spatial]``: the same picture in another file format has the same hash.

    It is over the type's name, the shape and the values in C order, little-endian: weights files and data lists of
    earlier versions hold it.
    """
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    digest = hashlib.sha256(f"{array.dtype.name} {array.shape}\n".encode())
    digest.update(array.data)
    return digest.hexdigest()


def tensor_hash(*tensors: Tensor) -> str:
    """Return the hash of types, shapes and values."""
    digest = hashlib.sha256()
    for tensor in tensors:
        array = tensor.detach().cpu().contiguous().numpy()
        digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """Return the hash of a state dict: names, types, shapes and values, in the order of the names.

    "" where it holds no values (device ``"meta"``).
    """
    import torch

    if any(value.is_meta for value in state.values()):
        return ""

    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.flatten().view(dtype=torch.uint8).numpy().data if value.numel() else b"")
    return digest.hexdigest()


def resource_folder(name: Literal["bundles", "data_lists"]) -> Path:
    """Return the folder of shipped ``bundles`` or ``data_lists``: the package's, or at the top of the repository."""
    package = Path(__file__).resolve().parent
    for candidate in (package / "_resources" / name, package.parent / name):
        if candidate.is_dir():
            return candidate
    raise UserError(f"the folder {name!r} that comes with medmdm is missing: install medmdm again")


def rank() -> int:
    """Return the number of this process, 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return how many processes there are, 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this process is the one that writes files and prints."""
    return rank() == 0
