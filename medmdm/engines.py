"""What 0.1 called :mod:`medmdm.runs` and :mod:`medmdm.pretrain`: only whole copies of its bundles ask for it."""

from __future__ import annotations

from typing import Any

from medmdm.errors import UserError, show_user_errors_as_sentences


def __getattr__(name: str) -> Any:
    if name.startswith("__"):  # of Python's import system
        raise AttributeError(name)
    show_user_errors_as_sentences()
    raise UserError(
        "This config is a copy of a whole bundle of medmdm 0.1, whose parts have moved: lay out today's bundles with "
        "`python -m medmdm init FOLDER` and keep your changes in an overlay."
    )
