"""The one kind of error that is a user's mistake, and how it is shown."""

from __future__ import annotations

import difflib
import functools
import logging
import sys
from collections.abc import Iterable
from types import TracebackType

logger = logging.getLogger(__name__)


class UserError(ValueError):
    """A mistake in a user's files, keys or values.

    The message is one sentence that names the file, key or value, says what was expected and what to do. Raise it
    as early as possible; :func:`show_user_errors_as_sentences` prints it without a traceback.
    """


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the candidate closest to ``name``, or ``""`` if none is close."""
    match = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.6)
    return f" (did you mean {match[0]!r}?)" if match else ""


def counted(number: int, thing: str) -> str:
    """Return ``"1 image"`` or ``"3 images"``."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


@functools.cache
def warn_once(sentence: str) -> None:
    """Log a warning the first time it is given."""
    logger.warning(sentence)


def find_user_error(error: BaseException | None) -> UserError | None:
    """Return the first :class:`UserError` in the chain of causes of ``error``.

    MONAI's config parser wraps what a component raises in a ``RuntimeError`` of its own, ``raise ... from``.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, UserError):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def show_user_errors_as_sentences() -> None:
    """Make the interpreter end with ``error: <sentence>`` and status 1 when a :class:`UserError` ends the program.

    Every other exception keeps its traceback. Calling it twice is harmless.
    """
    previous = sys.excepthook
    if getattr(previous, "_medmdm", False):
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        user_error = find_user_error(error)
        if user_error is None:
            previous(kind, error, trace)
        else:
            # A DataLoader's worker hands its error on with a traceback in the message, the sentence last.
            sentences = str(user_error).strip().rpartition("medmdm.errors.UserError: ")[2].splitlines()
            print("\n".join(f"error: {sentence}" for sentence in sentences), file=sys.stderr)

    hook._medmdm = True  # type: ignore[attr-defined]
    sys.excepthook = hook
