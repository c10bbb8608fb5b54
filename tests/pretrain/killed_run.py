"""Run a bundle and be killed at a chosen moment: ``python killed_run.py MOMENT run --config_file ...``.

MOMENT is ``step:N`` (in the middle of step N) or ``rename:TEXT:N`` (the N-th time that a temporary file is about to be
renamed to a path that contains TEXT).
"""

import os
import signal
import sys
from typing import Any

import fire
from monai.bundle import run

import medmdm.files
from medmdm.pretrain.trainer import MDMTrainer


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(moment: str) -> None:
    kind, _, rest = moment.partition(":")
    if kind == "step":
        original = MDMTrainer._require_finite

        def check(self: MDMTrainer, what: str, value: Any) -> None:
            if self.state.iteration == int(rest):
                die()
            original(self, what, value)

        MDMTrainer._require_finite = check  # type: ignore[method-assign]
    else:
        text, _, count = rest.rpartition(":")
        replace, seen = os.replace, [0]

        def rename(source: Any, target: Any) -> None:
            if text in str(target):
                seen[0] += 1
                if seen[0] == int(count):
                    die()
            replace(source, target)

        medmdm.files.os.replace = rename


if __name__ == "__main__":
    arm(sys.argv.pop(1))
    fire.Fire({"run": run})
