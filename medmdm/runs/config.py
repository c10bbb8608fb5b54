"""What MONAI's bundle runner does not do with a config: refuse unknown keys, and hand it to the run's record.

``monai.bundle run`` adds a mistyped override as a new key that nobody reads, and hands over ``--report false`` as a
text, which Python takes for true. The first ``initialize`` expression of our bundles calls :func:`start`, which reads
such texts as JSON does and holds what was merged (files and overrides) against the bundle's schema.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import re
import sys
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from pydoc import locate
from typing import Any

from monai.bundle import ConfigParser

from medmdm.components import moved, to_config
from medmdm.errors import UserError, show_user_errors_as_sentences, when_interrupted
from medmdm.files import claim, resource_folder
from medmdm.runs.command_line import restore, written_folder
from medmdm.runs.doctor import examine
from medmdm.runs.keys import arguments, config_faults, is_expression, leaves, recorded
from medmdm.runs.log import begin_log
from medmdm.runs.memory import keep_freed_memory
from medmdm.runs.threads import choose as set_threads
from medmdm.schemas import settings

logger = logging.getLogger(__name__)

_COPY = re.compile(r"config_\d{8}_\d{6}[.]json")
_JSON_WORDS = {"true": True, "false": False, "null": None}


def current_parser() -> ConfigParser:
    """Return the parser of the bundle workflow whose expression is being evaluated.

    An expression in a config cannot name the parser that evaluates it, but it runs below one: this looks up the stack.

    Raises:
        RuntimeError: if called from outside a config expression.
    """
    callers = [frame.f_locals.get("self") for frame, _ in traceback.walk_stack(sys._getframe(1))]
    parsers = [caller for caller in callers if isinstance(caller, ConfigParser)]
    if not parsers:
        raise RuntimeError("current_parser() works only inside an expression of a bundle's config.")
    return parsers[-1]  # the outermost: the workflow's own


def merged() -> dict[str, Any]:
    """Return the config of the running bundle, all files and overrides merged, as JSON-able content.

    A data list given in place of its file's name may hold patient ids: it becomes its hash. Tracking (``--tracking
    mlflow``) is left out: a run goes on with or without it.
    """
    return recorded(current_parser().get())


def resolved(key: str) -> Any:
    """Return a part of the running config with its references and expressions evaluated, but nothing instantiated.

    Args:
        key: id of the part, for example ``"network_def"``.
    """
    parser = current_parser()

    def resolve(part: Any, path: str) -> Any:
        if isinstance(part, dict):
            return {k: resolve(v, f"{path}#{k}") for k, v in part.items()}
        if isinstance(part, list):
            return [resolve(v, f"{path}#{i}") for i, v in enumerate(part)]
        if isinstance(part, str) and part[:1] in "$@":
            return copy.deepcopy(parser.get_parsed_content(path))
        return part

    return resolve(parser[key], key)


def described(key: str) -> dict[str, Any]:
    """Return what a component of the running config is made of, so that it can be made again.

    What it says of itself, defaults included (:func:`medmdm.components.to_config`); of a stranger, such as a network
    of MONAI's, its part of the config.

    Args:
        key: id of the part, for example ``"network_def"``.
    """
    try:
        return to_config(current_parser().get_parsed_content(key))
    except UserError:
        return resolved(key)


def start() -> None:
    """Begin a bundle: user errors become sentences, the config is normalised and checked, its folder is claimed.

    The log is taken down for ``run.log``, and the number of threads is set (:mod:`medmdm.runs.threads`).

    Raises:
        UserError: with a sentence for each error that :func:`medmdm.runs.doctor.examine` finds, or another process
            writes to the folder.
    """
    show_user_errors_as_sentences()
    when_interrupted("nothing is written yet; the same command starts anew.")
    begin_log()
    parser = current_parser()
    if restore(parser, settings(str(parser.get("bundle")))):
        parser.parse(reset=True)
    normalise(parser)
    config = parser.get()
    findings = examine(parser, thorough=config.get("dry_run") is True)
    errors = [f"{finding.message}." for finding in findings if finding.level == "error"]
    if errors:
        _remove_copy(parser)
    _refuse(errors)
    for finding in findings:
        (logger.warning if finding.level == "warning" else logger.info)(finding.message)
    known = settings(config["bundle"])
    late = [key for key in known if key in config and any(is_expression(leaf) for _, leaf in leaves([config[key]]))]
    given = {**config, **{key: parser.get_parsed_content(key) for key in late}}
    if given.get("keep_freed_memory"):
        keep_freed_memory()
    folder = written_folder(given)
    if folder is not None:  # another process is named before hours of reading
        claim(folder)
        logger.info("%s writes to %s", config["bundle"], folder)
    on_cpu, has_workers = str(given.get("device")) == "cpu", given.get("scheduler") is not None
    set_threads(given.get("threads"), folder, on_cpu, has_workers)


def normalise(parser: ConfigParser) -> None:
    """Read texts as JSON does, whole numbers such as 1e3 too, and find components of earlier versions under new names.

    The command line knows only Python's spelling: ``--report false`` arrives as a text that counts as true, and MONAI
    drops ``--shots None``, so that ``--shots null`` is the way to say it. A data list given in place of its file's name
    stays as it is.

    Args:
        parser: of the running bundle; parsed again if something was replaced.
    """
    replaced: dict[str, Any] = {}
    for path, value in leaves(parser.get()):
        if isinstance(value, str) and not path.split("#")[0].endswith("data_list"):
            meant = moved(value) if path.split("#")[-1] == "_target_" else _JSON_WORDS.get(value, value)
            if meant != value:
                replaced[path] = meant
    for key, schema in settings(str(parser.get("bundle"))).items():
        value = parser.get(key)
        if repr(meant := _whole(value, schema)) != repr(value):
            replaced[key] = meant
    if (head := _former_head(parser.get())) is not None:
        replaced["head"] = head
    for path, meant in replaced.items():
        parser[path] = meant
    if replaced:
        parser.parse(reset=True)


def _whole(value: Any, schema: Mapping[str, Any]) -> Any:
    """Return a value with 1000.0, which JSON Schema counts as whole, as 1000 wherever whole numbers are asked for."""
    if isinstance(value, list):
        return [_whole(item, schema.get("items", {})) for item in value]
    if isinstance(value, dict):
        return {key: _whole(item, schema.get("properties", {}).get(key, {})) for key, item in value.items()}
    counts = "integer" in schema.get("type", ()) and "number" not in schema["type"]
    return int(value) if counts and isinstance(value, float) and value.is_integer() else value


def _former_head(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the default head of 0.1 with arguments that were given for it, as 0.1's commands do; else None."""
    head, folder = config.get("head"), resource_folder("bundles")
    if config.get("bundle") != "mdm_segment" or not isinstance(head, dict):
        return None
    shipped = json.loads((folder / "mdm_segment.json").read_text(encoding="utf-8"))["head"]
    former = json.loads((folder / "overlays" / "frozen_segment.json").read_text(encoding="utf-8"))["head"]
    given = {key: value for key, value in head.items() if key not in shipped}
    known = arguments(locate(former["_target_"]))
    if not given or {**shipped, **given} != head or known is None or not given.keys() <= {*known}:
        return None
    logger.warning(
        "%s: arguments of the pixel classifier on frozen features, the default head of 0.1, which is therefore taken "
        "(overlays/frozen_segment.json chooses it).", ", ".join(f"head#{key}" for key in given),
    )  # fmt: skip
    return {**former, **given}


def check(config: Mapping[str, Any]) -> None:
    """Refuse keys that nothing reads and values of another kind than the bundle's schema says.

    Args:
        config: as in :func:`medmdm.runs.keys.config_faults`.

    Raises:
        UserError: with a sentence for each fault.
    """
    _refuse(fault.sentence for fault in config_faults(config))


def _remove_copy(parser: ConfigParser) -> None:
    """Delete the copy of the config that MONAI writes for ``--tracking`` before anything of it is checked."""
    with contextlib.suppress(Exception):  # whatever is wrong with the config
        written = Path(parser.get_parsed_content("save_execute_config"))
        if _COPY.fullmatch(written.name):  # no file of the user's
            written.unlink()
            written.parent.rmdir()  # if it is empty


def _refuse(sentences: Iterable[str]) -> None:
    found = list(dict.fromkeys(sentences))
    if found:
        raise UserError("\n".join(found))
