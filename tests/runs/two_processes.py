"""Under torchrun: take one step of the tiny pre-training and save the gradients that every process holds.

The names of the threads that are left when Python ends are saved beside them, where the system lists them.

``torchrun --nproc_per_node=2 two_processes.py OUT FILES SETTINGS`` (JSON)
"""

import atexit
import json
import os
import sys
from pathlib import Path

import torch
from monai.bundle import ConfigWorkflow
from monai.engines.utils import IterationEvents

from medmdm.averaging import unwrap
from medmdm.runs import processes as distributed


def save_threads(out: str) -> None:
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    Path(f"{out}.threads.{os.environ['RANK']}").write_text("\n".join(names))


def main(out: str, files: str, settings: str) -> None:
    atexit.register(save_threads, out)  # before the program's own, so that it is called after them
    made = ConfigWorkflow(config_file=json.loads(files), logging_file=False, **json.loads(settings))
    made.initialize()
    trainer = made.parser.get_parsed_content("train#trainer")

    @trainer.on(IterationEvents.BACKWARD_COMPLETED)
    def save(engine: object) -> None:
        network = unwrap(trainer.network)
        torch.save({name: p.grad for name, p in network.named_parameters()}, f"{out}.{distributed.rank()}")

    made.run()
    made.finalize()


if __name__ == "__main__":
    main(*sys.argv[1:])
