"""The one kind of error that is a user's mistake, and how it is shown."""

from __future__ import annotations

import contextlib
import difflib
import errno
import functools
import importlib.util
import itertools
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import NoReturn

logger = logging.getLogger(__name__)

INTERRUPTED = "interrupted: files that are written are whole, and the same command does the rest."
#: Name of the logger of what ends a program, which is printed already: for a run's own log.
SHOWN = "medmdm.shown"
_shown = logging.getLogger(SHOWN)
_shown.propagate = False
_shown.addHandler(logging.NullHandler())


def need(who: str, module: str, extra: str, name: str | None = None) -> None:
    """See that a module is installed which only an extra of medmdm brings.

    Args:
        who: needs it; begins the sentence.
        module: as it is imported.
        extra: of medmdm.
        name: of the package, where the module has another.

    Raises:
        UserError: it is not.
    """
    if importlib.util.find_spec(module) is None:
        raise UserError(f"{who} needs {name or module}: install it with pip install 'medmdm[{extra}]'.")


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a program as Ctrl-C does."""


_told = [INTERRUPTED]


def when_interrupted(sentence: str) -> None:
    """Set what an interrupt says from now on: ``sentence`` tells what is kept and what the same command then does."""
    _told[0] = f"interrupted: {sentence}"


def show_interruption(error: BaseException) -> int:
    """Print the sentence of an interrupt; return the exit status, 130 or for SIGTERM 143."""
    number = signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT
    print(_told[0], file=sys.stderr)
    _shown.warning(_told[0])
    return 128 + number


def terminate_as_interrupt() -> None:
    """Let SIGTERM end the program as Ctrl-C does, unless the program around this one has plans for it.

    Processes that are forked, such as a loader's workers, leave both signals to the first one.
    """
    here = threading.current_thread() is threading.main_thread()
    if not here or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return
    signal.signal(signal.SIGTERM, _terminate)
    if hasattr(os, "register_at_fork"):
        _leave_signals_in_children()


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


@functools.cache
def _leave_signals_in_children() -> None:
    def leave() -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    os.register_at_fork(after_in_child=leave)


class UserError(ValueError):
    """A mistake in a user's files, keys or values: one sentence that names it, says what was expected and what to do.

    Raise it as early as possible; :func:`show_user_errors_as_sentences` prints it without a traceback.
    """


class FullDiskError(UserError, OSError):
    """A disk or a quota is full; also an ``OSError``, so that a cache, which a run can do without, may go on.

    Args:
        folder: what was written to.
        reason: the system's, such as "No space left on device".
    """

    def __init__(self, folder: object, reason: str = "No space left on device") -> None:
        super().__init__(folder, reason)
        self.strerror = reason
        self._sentence = f"{folder} cannot be written ({reason}): free some space, then the same command goes on."

    def __str__(self) -> str:
        return self._sentence


class NotWritableError(UserError, PermissionError):
    """A folder may not be written to; also an ``OSError``, as :class:`FullDiskError` is.

    Args:
        folder: what was written to.
        reason: the system's, such as "Permission denied".
    """

    def __init__(self, folder: object, reason: str) -> None:
        super().__init__(folder, reason)
        self.strerror = reason
        self._sentence = f"{folder} cannot be written ({reason}): choose a folder in which you may write."

    def __str__(self) -> str:
        return self._sentence


_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR}
# torch.save hides why its file came out short: "[enforce fail at inline_container.cc:668] . unexpected pos 64 vs 0".
_CUT_SHORT = ("unexpected pos", "PytorchStreamWriter failed")
# MONAI's sentence around what a component's constructor raised.
_NOT_MADE = re.compile("Failed to instantiate component '([^']+)'")
# What these raise without a sentence is a mistake of ours, whose traceback is of use.
_OURS = ("medmdm.artifacts.", "medmdm.data.", "medmdm.pretrain.", "medmdm.reports.", "medmdm.runs.", "medmdm.segment.")


@contextlib.contextmanager
def refuse_full_disk(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Raise an error that names ``folder`` where what is written in the block finds no space, or may not be written.

    Raises:
        FullDiskError: there is no space.
        NotWritableError: it is read-only, of another user, or below a file.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        if isinstance(error, OSError) and error.errno in _DENIED:
            raise NotWritableError(folder, str(error.strerror)) from error
        reasons = [one.strerror for one in _chain(error) if isinstance(one, OSError) and one.errno in _FULL]
        if not reasons and isinstance(error, RuntimeError) and any(words in str(error) for words in _CUT_SHORT):
            reasons = ["the file was cut short; the disk may be full"]
        if not reasons:
            raise
        raise FullDiskError(folder, str(reasons[0])) from error


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the candidate closest to ``name``, or ``""`` if none is close."""
    match = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.6)
    return f" (did you mean {match[0]!r}?)" if match else ""


def counted(number: int, thing: str, one: str = "", many: str = "") -> str:
    """Return ``"1 case"``, ``"2 cases"``, followed by ``one`` or by ``many``: ``"1 case is"``, ``"2 cases are"``."""
    words = (str(number), thing if number == 1 else f"{thing}s", one if number == 1 else many)
    return " ".join(word for word in words if word)


@functools.cache
def warn_once(sentence: str) -> None:
    """Log a warning the first time it is given."""
    logger.warning(sentence)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and what caused it, the last one first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__


def find_user_error(error: BaseException | None) -> UserError | None:
    """Return the first :class:`UserError` in the chain of causes: MONAI's config parser wraps what components raise.

    A full disk and a file that may not be used count as one wherever they were found, and so does a component that
    refuses its arguments.
    """
    chain = list(_chain(error))
    found: list[UserError] = [one for one in chain if isinstance(one, UserError)]
    full = (one for one in chain if isinstance(one, OSError) and one.errno in _FULL)
    found += [FullDiskError(one.filename or "the disk", str(one.strerror)) for one in full]
    found += [_not_permitted(one) for one in chain if isinstance(one, OSError) and one.errno in _DENIED]
    for one, cause in reversed(list(itertools.pairwise(chain))):
        made = _NOT_MADE.match(str(one))
        if made and isinstance(cause, (TypeError, ValueError)) and not made[1].startswith(_OURS):
            found.append(cannot_be_built(made[1], cause))
    return found[0] if found else None


def _not_permitted(error: OSError) -> UserError:
    """Return the sentence for what the system does not let this user read or write."""
    name = str(error.filename2 or error.filename or "a file")
    # Of a file that is written under a temporary name, the folder says more.
    shown = os.path.dirname(name) if name.endswith(".part") else name
    advice = "check its permissions, and whether its disk is read-only"
    return UserError(f"{shown} cannot be used ({error.strerror}): {advice}; then the same command goes on.")


def cannot_be_built(name: str, error: Exception) -> UserError:
    """Return the sentence for a component whose constructor raised ``error``."""
    return UserError(f"{name} cannot be built: {str(error).strip().splitlines()[0].rstrip('.')}.")


def show_user_error(error: UserError) -> None:
    """Print ``error: <sentence>`` for each line of it."""
    # A DataLoader's worker hands its error on with a traceback in the message, the sentence last.
    sentences = str(error).strip().rpartition("medmdm.errors.UserError: ")[2].splitlines()
    print("\n".join(f"error: {sentence}" for sentence in sentences), file=sys.stderr)
    _shown.error("\n".join(sentences))


def show_user_errors_as_sentences() -> None:
    """Make the interpreter end with ``error: <sentence>`` and status 1 when a :class:`UserError` ends the program.

    An interrupt, also by SIGTERM, ends with a sentence too, and status 130 or 143. Every other exception keeps its
    traceback. Calling it twice is harmless.
    """
    terminate_as_interrupt()
    previous = sys.excepthook
    if getattr(previous, "_medmdm", False):
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        user_error = find_user_error(error)
        if issubclass(kind, KeyboardInterrupt):
            sys.exit(show_interruption(error))  # else Python would end itself by the signal
        elif user_error is None:
            previous(kind, error, trace)
            _shown.error("it failed", exc_info=(kind, error, trace))
        else:
            show_user_error(user_error)

    hook._medmdm = True  # type: ignore[attr-defined]
    sys.excepthook = hook
