"""Files that the program reads back, checked against what was written before anything is taken from them.

PyTorch's archives hold a checksum of each part, which PyTorch does not compare; JSON of ours carries its own digest.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmdm.errors import UserError
from medmdm.files import save_json, text_hash

if TYPE_CHECKING:  # the command line starts without torch, which takes seconds
    import torch

DIGEST = "sha256"  # the key of a JSON file's digest
_ZIP = b"PK\x03\x04"
_FOLDER = 0x10  # in the attributes of a part, as DOS has them
_CHUNK = 1 << 20
_AGAIN = "copy or make it again"


class DamagedFileError(UserError):
    """A file is not what was written: cut off, or with other bytes in it; no other failure to read is this one."""


def load_torch(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Any:
    """Read tensors and plain values, and run nothing, from a file of ``torch.save`` whose checksums agree.

    Files of PyTorch before 1.6 are no archives and have no checksums; some programs switch them off.

    Args:
        path: the file.
        device: where the tensors go; ``"meta"`` reads all but their values.

    Raises:
        DamagedFileError: it is cut off, bytes in it have changed, or it is no file of PyTorch's at all.
        UserError: it cannot be read for another reason: permission, memory, Python objects in it.
        FileNotFoundError: there is none.
    """
    import torch

    try:
        with open(path, "rb") as file:
            is_archive = file.read(len(_ZIP)) == _ZIP
        if is_archive:
            _check_archive(path)
        return torch.load(path, map_location=device, weights_only=True)
    except (UserError, FileNotFoundError):
        raise
    except (MemoryError, torch.cuda.OutOfMemoryError) as error:
        raise UserError(f"{path} does not fit into memory: free some, or use another device.") from error
    except OSError as error:
        raise unreadable(path, error) from error
    except Exception as error:  # torch has no error of its own here: pickle's, zip's and KeyErrors have been seen
        said = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        if isinstance(error, RuntimeError) and any(word in said for word in ("memory", "CUDA")):
            raise UserError(f"{path} cannot be read here ({said}): free memory, or use another device.") from error
        if is_archive and isinstance(error, pickle.UnpicklingError):
            need = "save the state dict alone, torch.save(network.state_dict(), path), where it comes from"
            what = "the file holds Python objects besides tensors, which could run code when loaded"
            raise UserError(f"{path}: {what}; {need}.") from error
        raise DamagedFileError(f"{path}: this is not a PyTorch checkpoint, or it is damaged.") from error


def _check_archive(path: str | os.PathLike[str]) -> None:
    """Compare the checksum of each part of an archive."""
    if not zipfile.is_zipfile(path):
        raise DamagedFileError(f"{path}: the file is cut off; copy or download it again.")
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            if not any(part.CRC for part in parts):  # torch.serialization.set_crc32_options(False) wrote none
                return
            # PyTorch gives memory as it was for a part that is marked as a folder.
            folders = [part.filename for part in parts if part.external_attr & _FOLDER]
            bad = folders[0] if folders else archive.testzip()
    except OSError as error:
        if error.errno != errno.EINVAL:  # a place before the start of the file
            raise
        bad = "its list of parts"
    except MemoryError:
        raise
    except Exception:  # parts that lie elsewhere, overlap, are packed in ways that nobody knows, ...
        bad = "its list of parts"
    if bad is not None:
        raise DamagedFileError(f"{path} is damaged ({bad} has changed since it was written): {_AGAIN}.")


def file_checksum(path: str | os.PathLike[str]) -> int:
    """Return the CRC-32 of a file's bytes: enough against chance, and several times as fast as a hash."""
    value = 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            value = zlib.crc32(chunk, value)
    return value


def save_record(content: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a JSON object as :func:`medmdm.files.save_json` does, with the digest that :func:`load_record` compares."""
    save_json(with_digest(content), path)


def with_digest(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with its digest as the last key; what is no JSON raises ValueError or TypeError."""
    plain = json.loads(json.dumps({key: value for key, value in content.items() if key != DIGEST}, allow_nan=False))
    return {**plain, DIGEST: _digest(plain)}


def without_digest(content: dict[str, Any]) -> dict[str, Any] | None:
    """Return a JSON object without its digest, if it has one; None where it is not what the digest was made of."""
    content = dict(content)
    stored, last = content.pop(DIGEST, None), next(reversed(content), "")
    others = {key: value for key, value in content.items() if key != last}
    # The key of the digest may be what has changed.
    if _digest(others) == content.get(last) or (stored is not None and stored != _digest(content)):
        return None
    return content


def load_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON object, without its digest where it has one; files of version 0.1 have none.

    Raises:
        DamagedFileError: it is no JSON object, or not the one that was written.
        UserError: it cannot be read for another reason.
        FileNotFoundError: there is none.
    """
    try:
        content = json.loads(Path(path).read_bytes().decode("utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(error.errno, error.strerror, str(path)) from error
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, RecursionError) as error:
        said = str(error).splitlines()[0]
        raise DamagedFileError(f"{path} is not JSON ({said}): it is damaged; {_AGAIN}.") from error
    if not isinstance(content, dict):
        raise DamagedFileError(f"{path} holds a {type(content).__name__}: it must be an object; {_AGAIN}.")
    intact = without_digest(content)
    if intact is None:
        advice = f"{_AGAIN}, or delete its {DIGEST!r} if the change is yours"
        raise DamagedFileError(f"{path} has changed since it was written: {advice}.")
    return intact


def unreadable(path: str | os.PathLike[str], error: OSError) -> UserError:
    """Return the sentence for a file that the system does not give."""
    return UserError(f"{path} cannot be read ({error.strerror or error}): check what it is, and its permissions.")


def _digest(content: Mapping[str, Any]) -> str:
    return text_hash(json.dumps(content, sort_keys=True))
