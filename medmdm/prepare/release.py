"""The files of a published data set, whether its folder was unpacked or not."""

from __future__ import annotations

import re
import shutil
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from medmdm.data.files.formats import IMAGE_SUFFIXES
from medmdm.data.folders import is_hidden, walk_files
from medmdm.errors import FullDiskError, UserError, refuse_full_disk
from medmdm.files import stream_hash

# Pictures of one colour shrink a thousandfold, so a ratio means nothing for small files. No data set of images shrinks
# this much as a whole; an archive that does is built to fill the disk.
_SUSPICIOUS_SIZE = 1 << 30
_SUSPICIOUS_RATIO = 200


@dataclass(frozen=True, eq=False)
class SourceFile:
    """One file of a release.

    Args:
        path: below the release's top.
        shown: how messages name it.
        open: opens it for reading bytes.
        on_disk: where it lies, ``None`` when it is in a zip file.
    """

    path: PurePosixPath
    shown: str
    open: Callable[[], IO[bytes]]
    on_disk: Path | None = None

    @property
    def stem(self) -> str:
        return self.path.stem

    @property
    def suffix(self) -> str:
        return self.path.suffix.lower()

    def sha256(self) -> str:
        """Return the hash of the content."""
        with self._reading() as file:
            return stream_hash(file)

    @contextmanager
    def local(self) -> Iterator[Path]:
        """Give a path on disk to read from; what was unpacked, to a folder of its own, is deleted afterwards."""
        if self.on_disk is not None:
            yield self.on_disk
            return
        with tempfile.TemporaryDirectory(prefix="medmdm-") as folder:
            target = Path(folder, self.path.name)
            try:
                with self._reading() as file, refuse_full_disk(folder), open(target, "wb") as unpacked:
                    shutil.copyfileobj(file, unpacked, 1 << 20)
                yield target
            except UserError as error:
                raise UserError(str(error).replace(str(target), self.shown)) from error

    @contextmanager
    def _reading(self) -> Iterator[IO[bytes]]:
        try:
            with self.open() as file:
                yield file
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise UserError(f"{self.shown} cannot be unpacked ({error}): download the zip file again.") from error
        except FullDiskError:
            raise
        except OSError as error:
            raise UserError(f"{self.shown} cannot be read ({error.strerror or error}): check the file.") from error


@dataclass(frozen=True)
class Release:
    """What SOURCE holds.

    Args:
        source: the folder or zip file.
        files: all files but hidden ones, in string order of their paths.
        notices: what was left unread, and why.
    """

    source: Path
    files: tuple[SourceFile, ...]
    notices: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.source.resolve().name

    @property
    def images(self) -> list[SourceFile]:
        return [file for file in self.files if file.suffix in IMAGE_SUFFIXES]


@contextmanager
def open_release(source: Path, zips_inside: bool = False) -> Iterator[Release]:
    """Open a folder, a zip file, or a folder that holds nothing but the zip files of one release.

    Zip files are checked before anything is read from them: paths that leave the folder, the same path twice, and
    sizes that only a decompression bomb has are refused. Members are unpacked where they are needed, into temporary
    folders, and deleted at once.

    Args:
        source: folder or zip file; it is only read.
        zips_inside: whether zip files in a folder without images belong to the release.

    Raises:
        UserError: SOURCE is no folder or sound zip file, or is empty.
    """
    notices: list[str] = []
    with ExitStack() as stack:
        if source.is_dir():
            files = []
            for path in walk_files(source):
                below = PurePosixPath(composed(path.relative_to(source).as_posix()))
                files.append(SourceFile(below, str(path), partial(path.open, "rb"), path))  # type: ignore[arg-type]
            zips = [file for file in files if file.suffix == ".zip"]
            if zips_inside and zips and not any(file.suffix in IMAGE_SUFFIXES for file in files):
                for file in zips:
                    assert file.on_disk is not None
                    files += _zip_files(stack, file.on_disk, file.path.with_suffix(""))
            elif zips_inside and zips:
                notices.append(f"{len(zips)} zip files beside the images are not read")
        else:
            files = _zip_files(stack, source, PurePosixPath())
        if not files:
            raise UserError(f"{source} is empty: give the folder or the zip file as downloaded.")
        yield Release(source, tuple(sorted(files, key=lambda file: file.path.as_posix())), tuple(notices))


def by_stem(files: Iterable[SourceFile]) -> dict[str, SourceFile]:
    """Return files by name without suffix; of copies the first is taken.

    Raises:
        UserError: two files share a name but differ.
    """
    found: dict[str, SourceFile] = {}
    for file in files:
        other = found.setdefault(file.stem, file)
        if other is not file and other.sha256() != file.sha256():
            raise UserError(f"{other.shown} and {file.shown} have one name but differ: keep the one of the release.")
    return found


def _zip_files(stack: ExitStack, path: Path, prefix: PurePosixPath) -> list[SourceFile]:
    try:
        archive = stack.enter_context(zipfile.ZipFile(path))
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise UserError(f"{path} is neither a folder nor a sound zip file ({error}): download it again.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a zip file ({error}): check the file.") from error
    members = {member: _slashes(member.filename) for member in archive.infolist()}
    members = {member: name for member, name in members.items() if not name.endswith("/")}
    _refuse_unsafe(path, list(members))
    return [
        SourceFile(prefix / name, f"{path}/{name}", partial(archive.open, member))
        for member, name in members.items()
        if not any(is_hidden(part) for part in PurePosixPath(name).parts)
    ]


def _slashes(name: str) -> str:
    r"""Return the name of a member as the standard has it: .NET and old programs of Windows write ``data\a.png``."""
    return composed(name.replace("\\", "/"))


def composed(name: str) -> str:
    """Return a name in Unicode's composed form: macOS decomposes letters with accents, and labels may come from it."""
    return unicodedata.normalize("NFC", name)


def _refuse_unsafe(path: Path, members: list[zipfile.ZipInfo]) -> None:
    seen: set[str] = set()
    for member in members:
        # `filename` ends at a NUL byte and has the host's separators; the name in the archive is what counts.
        name = member.orig_filename
        slashed = _slashes(name)
        if slashed.startswith("/") or ".." in slashed.split("/") or re.match(r"[A-Za-z]:", name) or "\0" in name:
            raise UserError(f"{path} holds the path {name!r}, which leaves its folder: the file is not to be trusted.")
        if slashed in seen:
            raise UserError(f"{path} holds {name!r} twice: the file is not to be trusted.")
        seen.add(slashed)
        if member.flag_bits & 1:
            raise UserError(f"{path} is encrypted ({name!r}): unpack it and give the folder.")
    # Reading stops at a member's stated size, so the stated sizes bound what is unpacked. Members that share bytes of
    # the archive are why the sum is compared with the file's own size.
    total, packed = sum(member.file_size for member in members), max(1, path.stat().st_size)
    if total > _SUSPICIOUS_SIZE and total > _SUSPICIOUS_RATIO * packed:
        raise UserError(
            f"{path} would unpack to {total / 2**30:.1f} GiB, {total // packed} times its size, which is refused as a "
            "possible zip bomb: if you trust it, unpack it and give the folder."
        )
