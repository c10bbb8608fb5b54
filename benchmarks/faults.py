"""What damage, kills, crashes, two programs, signals and full or read-only folders do to tiny runs of every command.

    python benchmarks/faults.py [--quick] [--seed N] [--json]

Every command runs once undisturbed. Then each fault meets a run of the same command in the same place; the command is
started again until it ends well, and what it leaves must be the same to the last bit, but for what tells its times.
Commands run in forks of this process, which has everything imported. Files that are read back are damaged and loaded,
alone. The last four columns must be 0:

* differences: another result than the undisturbed one, or none, after the same command was started again;
* silent: status 0, but other tensors or pixels;
* tracebacks: instead of a sentence, or a signal that ends the program without a word;
* leftovers: temporary files that stay.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import json
import logging
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # the same bits, and processes that can be forked
sys.path.insert(0, str(Path(__file__).parents[1]))

from fault_files import KINDS, File
from walk import pictures

from medmdm.cli import main as command_line
from medmdm.errors import find_user_error
from medmdm.files import OUTPUTS_MARK
from medmdm.intact import DIGEST, load_record
from tests.bundle_runs import HEAD, bundle_command, write_backbone
from tests.damage.flips import damages, equal
from tests.made_slides import tissue_in, write_slide

#: The command's own words for its times and its machine; records and pages of them are not compared.
TIMED = ("run.json", "run.log", "summary.json", "index.html", ".lock")
#: What a command says that does not do its work twice.
DONE = "exists already"
#: Hidden files that stay.
KEPT = (OUTPUTS_MARK, ".lock")
#: The commands of a quick run: segmenting only makes the segmenter.
QUICK = ("segment", "infer", "prepare")
COUNTS = ("tried", "told", "same", "differences", "silent", "tracebacks", "leftovers")
_SECONDS = 300.0  # after which a command hangs


@dataclass
class Row:
    """A line of the table; what went wrong is printed as it is found."""

    name: str
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, what: str, detail: str = "") -> None:
        """Count one."""
        self.counts[what] += 1
        if what in COUNTS[3:]:
            print(f"{self.name}: {what}: {detail}", file=sys.stderr, flush=True)


@dataclass
class Program:
    """A command in a fork.

    Args:
        words: of the command line.
        before: called in the fork first.
    """

    words: Sequence[str]
    before: Callable[[], None] = lambda: None
    said: bytes = field(default=b"", init=False)
    status: int | None = field(default=None, init=False)  # below 0: minus the signal that ended it

    def __post_init__(self) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self._out, end = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            status = 1
            try:
                os.dup2(end, 1)
                os.dup2(end, 2)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                self.before()
                status = _as_program(self.words)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        os.close(end)

    def wait(self, seconds: float = _SECONDS) -> bool:
        """Wait until it ends, so long at most; return whether it has."""
        deadline = time.monotonic() + seconds
        while self.status is None and time.monotonic() < deadline:
            self._read(0.01)
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
                self._read(0)
                os.close(self._out)
        return self.status is not None

    def _read(self, seconds: float) -> None:
        while select.select([self._out], [], [], seconds)[0]:
            if not (part := os.read(self._out, 1 << 16)):
                time.sleep(seconds)
                return
            self.said += part
            seconds = 0

    def hit(self, number: int) -> None:
        """Send a signal."""
        os.kill(self._pid, number)

    @property
    def text(self) -> str:
        """What it has printed."""
        return self.said.decode(errors="replace")


def _as_program(words: Sequence[str]) -> int:
    """Return the status with which the interpreter would end."""
    try:
        try:
            return command_line(words)
        except SystemExit:
            raise
        except BaseException:
            sys.excepthook(*sys.exc_info())
            return 1
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)


def contents(folder: Path) -> dict[str, Any]:
    """Return what a command has left, without what tells its times."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or path.name in TIMED or "tensorboard" in name:
            continue
        if path.parent.name == "cells":
            found[name] = {key: value for key, value in load_record(path).items() if key not in ("seconds", DIGEST)}
        elif path.name == "metrics.csv":
            rows = [line.split(",") for line in path.read_text().splitlines()]
            found[name] = [row[:4] + row[6:] for row in rows]
        elif path.suffix == ".ts":  # a trace says who called whom
            with zipfile.ZipFile(path) as parts:
                names = (one for one in parts.namelist() if not one.endswith((".debug_pkl", "serialization_id")))
                found[name] = {one: parts.read(one) for one in names}
        else:
            found[name] = path.read_bytes()
    return found


def differing(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Return the names of files that are not the same; cached features may lack, where they found no space."""
    missing = {name for name in expected.keys() - found.keys() if not name.startswith("features/")}
    return sorted(missing | {name for name, content in found.items() if content != expected.get(name)})


def hidden(folder: Path) -> list[str]:
    """Return the names of what a command hides below a folder: temporary files and folders, unless it is done."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(".*") if path.name not in KEPT)


class Commands:
    """Every command that writes into a folder, on made data, and what it leaves undisturbed.

    Args:
        root: an empty folder.
        quick: only a few, once each.
    """

    def __init__(self, root: Path, quick: bool = False) -> None:
        self.root, self.out, self.finished = root, root / "out", root / "finished"
        os.environ["XDG_CACHE_HOME"] = str(root / "out" / "cache")
        (root / "data").mkdir(parents=True)
        self.finished.mkdir()
        data, run = str(pictures(root / "data", volumes=False)), str(self.out / "run")
        model = write_backbone(root / "model.pt")
        segmenter = str(self.finished / "segment" / "run" / "segmenter.pt")
        common = ["--dataset_dir", data, "--slice_cache", str(self.out / "slices")]
        head = {**HEAD, "members": 1, "max_epochs": 2, "min_epochs": 2}
        heads = {"ridge": {"_target_": "medmdm.heads.ClosedFormHead", "method": "ridge"}, "mlp": head}
        backbones = {"MDM": {"path": str(model)}}
        self.words: dict[str, list[str]] = {
            "pretrain": ["pretrain", *bundle_command(Path(run), root / "data")[3:]],
            "segment": ["segment", "--run_dir", run, "--backbone", str(model), "--head", str(head),
                        "--report", "false", *common],
            "study": ["study", "--run_dir", run, "--backbones", str(backbones), "--heads", str(heads),
                      "--shots", "[2]", "--draws", "1", "--reference", "['MDM','ridge']", *common],
            "infer": ["infer", "--output_dir", run, "--segmenter", segmenter,
                      "--write_boxes", "true", *common],
            "evaluate": ["evaluate", "--run_dir", run, "--segmenter", segmenter, *common],
            "slide": ["infer", "--output_dir", run, "--segmenter", segmenter, "--dataset_dir", str(root / "slides")],
            "prepare": ["prepare", "folder", data, run],
            "pack": ["pack", str(self.finished / "pretrain" / "run"), run],
        }  # fmt: skip
        (root / "slides").mkdir()
        write_slide(root / "slides" / "slide.ome.tif", (96, 128), tissue_in(96, 128))
        if quick:
            self.words = {name: words for name, words in self.words.items() if name in QUICK}
        self.expected: dict[str, dict[str, Any]] = {}
        self.seconds: dict[str, float] = {}
        self.renames: dict[str, int] = {}
        for name, words in self.words.items():
            for attempt in range(1 if quick else 2):  # the first one imports; this process then does so for the others
                self.clear()
                begun = time.monotonic()
                program = Program(words, functools.partial(_count_renames, root))
                if not program.wait() or program.status != 0:
                    raise SystemExit(f"{name} cannot be run undisturbed:\n{program.text}")
                self.seconds[name] = time.monotonic() - begun
                found = contents(self.out / "run")
                if attempt and (other := differing(found, self.expected[name])):
                    raise SystemExit(f"{name} gives other bits at every run: {other}")
                self.expected[name] = found
                _import_all((root / "modules").read_text().split())
            self.renames[name] = int((root / "renames").read_text())
            shutil.copytree(self.out, self.finished / name)
        if quick:
            self.words.pop("segment")

    def clear(self) -> None:
        """Take away what the last command has left."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()
        self.out.chmod(0o755)

    def judge(self, row: Row, name: str, program: Program, ends: Sequence[int], moment: str) -> None:
        """Count how a disturbed command ended, start it again, and compare.

        Args:
            row: counts.
            name: of the command.
            program: that has ended.
            ends: statuses that the fault may end it with, beside 0.
            moment: of the fault, for who looks into it.
        """
        where = f"{name}, {moment}"
        row.add("tried")
        killed = program.status == -signal.SIGKILL
        said = program.text.strip().splitlines() or [""]
        if program.status == 0:
            other = differing(contents(self.out / "run"), self.expected[name])
            row.add("silent" if other else "same", f"{where}: {other}")
        elif "Traceback" in program.text or program.status not in ends:
            row.add("tracebacks", f"{where}: status {program.status}: {program.text[-3000:]}")
        elif not killed:
            spoken = any(line.startswith(("error: ", "interrupted: ")) for line in said[-3:])
            row.add("told" if spoken else "tracebacks", f"{where}: {said[-1]}")
        if not killed and (left := hidden(self.out)):
            row.add("leftovers", f"{where}: {left}")
        again = Program(self.words[name])
        if not again.wait() or (again.status != 0 and DONE not in again.text):
            row.add("differences", f"{where}: started again: status {again.status}: {again.text[-3000:]}")
        elif other := differing(contents(self.out / "run"), self.expected[name]):
            row.add("differences", f"{where}: {other}")
        if left := hidden(self.out):
            row.add("leftovers", f"{where}, started again: {left}")


def _import_all(names: Sequence[str]) -> None:
    with warnings.catch_warnings(), contextlib.redirect_stderr(None):
        warnings.simplefilter("ignore")
        for name in names:
            with contextlib.suppress(Exception):
                importlib.import_module(name)


def _count_renames(root: Path) -> None:
    """Let this process write down how often it renames, and its modules."""
    replace, seen = os.replace, [0]

    def counting(source: Any, target: Any) -> None:
        replace(source, target)
        seen[0] += 1
        (root / "renames").write_text(str(seen[0]))
        (root / "modules").write_text("\n".join(n for n in sys.modules if not n.startswith("__")))

    os.replace = counting  # type: ignore[assignment]


def _crash(number: int, after: bool) -> None:
    """Let this process be killed before or after the rename of that number."""
    replace, seen = os.replace, [0]

    def crashing(source: Any, target: Any) -> None:
        seen[0] += 1
        if seen[0] == number and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
        if seen[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = crashing  # type: ignore[assignment]


def hit(commands: Commands, row: Row, count: int, rng: random.Random, numbers: Sequence[int]) -> None:
    """Send signals at random moments of all commands in turn."""
    names = list(commands.words)
    for k in range(count):
        name, number = names[k % len(names)], numbers[k // len(names) % len(numbers)]
        commands.clear()
        moment = rng.uniform(0.05, commands.seconds[name])
        program = Program(commands.words[name])
        if not program.wait(moment):
            program.hit(number)
            program.wait()
        ends = [-signal.SIGKILL] if number == signal.SIGKILL else [128 + number]
        commands.judge(row, name, program, ends, f"{signal.Signals(number).name} after {moment:.2f} s")


def crash(commands: Commands, row: Row, most: int, rng: random.Random) -> None:
    """Be killed before and after renames; of each command all of them, or so many."""
    for name in commands.words:
        moments = [(k + 1, after) for k in range(commands.renames[name]) for after in (False, True)]
        for number, after in moments if len(moments) <= most else sorted(rng.sample(moments, most)):
            commands.clear()
            program = Program(commands.words[name], functools.partial(_crash, number, after))
            program.wait()
            commands.judge(row, name, program, [-9], f"{'after' if after else 'before'} rename {number}")


def run_twice(commands: Commands, row: Row, count: int, rng: random.Random) -> None:
    """Start each command twice, the second at once or a moment later."""
    for name, words in commands.words.items():
        for k in range(count):
            commands.clear()
            first = Program(words)
            first.wait(moment := 0.0 if k == 0 else rng.uniform(0, commands.seconds[name]))
            second = Program(words)
            first.wait()
            second.wait()
            for program, other in ((first, second), (second, first)):
                if program.status != 0 and other.status != 0:
                    row.add("differences", f"{name}: neither went on: {program.text[-500:]}")
                commands.judge(row, name, program, [1], f"two programs, {moment:.2f} s apart")


def fill(commands: Commands, row: Row, count: int, rng: random.Random) -> None:
    """Let no file grow beyond a size, as on a full disk."""
    for name, words in commands.words.items():
        sizes = sorted({p.stat().st_size for p in (commands.finished / name).rglob("*") if p.is_file()})
        for size in [0, *rng.sample(sizes, min(len(sizes), count - 1))]:
            commands.clear()
            limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (max(size - 1, 0),) * 2)
            program = Program(words, limit)
            program.wait()
            commands.judge(row, name, program, [1], f"files of {max(size - 1, 0)} bytes at most")


def forbid(commands: Commands, row: Row, most: int) -> None:
    """Let a folder be read-only: a new one's parent, one without its results, and a finished one."""
    for name, words in commands.words.items():
        for state in ("new", "begun", "finished")[:most]:
            if (name, state) == ("pack", "begun"):  # it has all or nothing at its place
                continue
            commands.clear()
            if state != "new":
                shutil.copytree(commands.finished / name, commands.out, dirs_exist_ok=True)
            if state == "begun":
                for path in (commands.out / "run").rglob("*"):
                    if path.name in ("model.pt", "evaluation.json", "study.csv", "dataset.json"):
                        path.unlink()
            program = Program(words, functools.partial(_without_rights, commands.out))
            program.wait()
            for path in [commands.out, *commands.out.rglob("*")]:
                path.chmod(0o755 if path.is_dir() else 0o644)
            commands.judge(row, name, program, [1], f"read-only, {state}")


def _without_rights(folder: Path) -> None:
    """Take the right to write from this process: the superuser, who may do anything, becomes nobody."""
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)


def damage(files: Sequence[File], row: Row, count: int, seed: int) -> None:
    """Change a byte of each file, or cut it off, so often, and load it."""
    for file in files:
        whole, expected = file.path.read_bytes(), file.load()
        for number, content in enumerate(damages(whole, count, seed + len(whole))):
            file.path.write_bytes(content)
            row.add("tried")
            where = f"{file.kind}, {file.path.name}, try {number}"
            try:
                same = equal(file.load(), expected)
                row.add("same" if same else "silent", where)
            except Exception as error:
                if find_user_error(error) is None:
                    row.add("tracebacks", f"{where}: {''.join(traceback.format_exception(error)[-3:])}")
                else:
                    row.add("told")
            file.restore(whole)
        if not equal(file.load(), expected):
            row.add("differences", f"{file.kind}: whole again, it is not the same")


def main(words: Sequence[str] | None = None) -> int:
    """Try everything and print a table; return 1 where a count that must be 0 is not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few faults of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of places and moments")
    parser.add_argument("--only", help="one kind of fault")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    given = parser.parse_args(words)
    quick, rng = given.quick, random.Random(given.seed)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name).resolve()
        root.chmod(0o755)  # for who has no rights
        commands = Commands(root, quick)
        took = ", ".join(f"{n} {s:.1f} s and {commands.renames[n]} renames" for n, s in commands.seconds.items())
        print(f"undisturbed: {took}", file=sys.stderr, flush=True)
        tries: dict[str, Callable[[Row], None]] = {
            "flips and cuts": lambda row: damage(
                [file for kind in KINDS for file in kind(commands.finished, root)], row, 4 if quick else 24, given.seed
            ),
            "SIGKILL": lambda row: hit(commands, row, 2 if quick else 54, rng, [signal.SIGKILL]),
            "crashes at renames": lambda row: crash(commands, row, 1 if quick else 16, rng),
            "two programs": lambda row: run_twice(commands, row, 1 if quick else 3, rng),
            "SIGINT and SIGTERM": lambda row: hit(
                commands, row, 2 if quick else 36, rng, [signal.SIGINT, signal.SIGTERM]
            ),
            "full folders": lambda row: fill(commands, row, 1 if quick else 4, rng),
            "read-only folders": lambda row: forbid(commands, row, 1 if quick else 3),
        }
        rows = []
        for title, attempt in tries.items():
            if given.only in (None, title):
                rows.append(Row(title))
                attempt(rows[-1])
                took = f"{time.monotonic() - begun:.0f} s"
                print(f"{title}: {dict(rows[-1].counts)}, {took}", file=sys.stderr, flush=True)
    if given.json:
        print(json.dumps({row.name: {key: row.counts[key] for key in COUNTS} for row in rows}))
    else:
        print(f"| fault | {' | '.join(COUNTS)} |\n| --- |{' --- |' * len(COUNTS)}")
        for row in rows:
            print(f"| {row.name} | {' | '.join(str(row.counts[key]) for key in COUNTS)} |")
    return int(any(row.counts[key] for row in rows for key in COUNTS[3:]))


if __name__ == "__main__":
    logging.getLogger("medmdm").setLevel(logging.ERROR)
    sys.exit(main())
