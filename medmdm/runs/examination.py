"""A config under examination: its parts are evaluated one by one, and what is wrong with them is collected."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from monai.bundle import ConfigParser

from medmdm.check.findings import Finding
from medmdm.errors import UserError, find_user_error
from medmdm.runs.keys import Fault, config_faults, faults, is_expression, leaves, shipped
from medmdm.schemas import settings

_UNKNOWN = object()
_REFUSALS = (UserError, TypeError, ValueError, AssertionError, KeyError, ModuleNotFoundError)


class Examination:
    """Findings on a config, of which the running one is a copy: evaluating its parts leaves no trace in a run.

    What is wrong by the schema is noted and then put right, as it comes with medmdm, so that the rest is looked at too.

    Args:
        parser: of the merged config.

    Raises:
        UserError: the config names no bundle of medmdm's.
    """

    def __init__(self, parser: ConfigParser) -> None:
        self.findings: list[Finding] = []
        self._causes = set[str]()
        self.parser = ConfigParser(copy.deepcopy(dict(parser.get())))
        self.bundle = str(self.parser.get("bundle"))
        found = list(config_faults(self.parser.get()))
        self._put_right(found)
        known = settings(self.bundle)
        for key in known:
            part = self.parser.get(key, _UNKNOWN)
            if part is not _UNKNOWN and any(is_expression(leaf) for _, leaf in leaves([part])):
                value = self.part(key, default=_UNKNOWN)
                late = [] if value is _UNKNOWN else list(faults({key: value}, {"properties": known}))
                if late or value is _UNKNOWN:
                    self._put_right(late or [Fault(key, "")])

    # -- findings ------------------------------------------------------------------------------------------------

    def note(self, finding: Finding) -> None:
        """Add a finding, once."""
        if all(finding.message != other.message for other in self.findings):
            self.findings.append(finding)

    def error(self, check: str, message: object, *files: str) -> None:
        """Note an error; a sentence of several lines is several."""
        for line in str(message).splitlines():
            self.note(Finding.error(check, line, *files))

    def warning(self, check: str, message: object, *files: str) -> None:
        """Note a warning."""
        self.note(Finding("warning", check, str(message).removesuffix("."), files))

    def info(self, check: str, message: object) -> None:
        """Note what is worth a word."""
        self.note(Finding("info", check, str(message).removesuffix(".")))

    @contextmanager
    def noting(self, check: str, what: str = "", meta: bool = False) -> Iterator[None]:
        """Turn what is raised in the block into a finding.

        Args:
            check: the kind of the finding.
            what: how a sentence begins that does not say itself what it is about.
            meta: the block works on tensors without memory: an operation that needs their values proves nothing.
        """
        # What parts say of themselves while they are made, they say again in the run.
        root, before = logging.getLogger(), logging.root.manager.disable
        logging.disable(max(before, logging.WARNING))
        try:
            yield
        except Exception as error:
            user_error = find_user_error(error)
            cause = _innermost(error)
            if user_error is not None:
                self.error(check, user_error)
            elif meta and not _is_refusal(cause):
                root.debug("%s: not tried without memory: %s", what, cause)
            elif (said := (str(cause).strip() or type(cause).__name__).splitlines()[0]) not in self._causes:
                self._causes.add(said)  # what refers to that part fails for the same reason
                self.error(check, f"{what}: {said}" if what else said)
        finally:
            logging.disable(before)

    # -- parts ---------------------------------------------------------------------------------------------------

    def part(self, key: str, default: Any = None, meta: bool = False) -> Any:
        """Return a part as a run would make it, or ``default`` where it cannot be made, which is noted.

        Args:
            key: its id.
            default: what is returned then.
            meta: make its tensors without memory.
        """
        with self.noting("config", key, meta), torch.device("meta" if meta else "cpu"):
            return self.parser.get_parsed_content(key)
        return default

    def given(self, key: str) -> Any:
        """Return a setting, evaluated; that of the shipped bundle where the config has none."""
        return shipped(self.bundle).get(key) if self.parser.get(key, _UNKNOWN) is _UNKNOWN else self.part(key)

    def hold(self, key: str, value: Any) -> None:
        """Let other parts find ``value`` under a key instead of what the config would make."""
        if not self.parser.ref_resolver.is_resolved():
            self.parser.parse(reset=True)
        self.parser.ref_resolver.resolved_content[key] = value

    def forget(self, *keys: str) -> bool:
        """Whether none of the keys is in the config."""
        return all(self.parser.get(key) is None for key in keys)

    def _put_right(self, found: list[Fault]) -> None:
        config = json.loads(json.dumps(shipped(self.bundle)))
        for fault in found:
            if fault.sentence:
                self.error("config", fault.sentence)
            root, *below = fault.path.split("#")
            if fault.unknown:
                holder = self.parser.get("#".join([root, *below[:-1]])) if below else self.parser.get()
                holder.pop((below or [root])[-1], None)
            elif root in config:
                place = fault.path if _same_parts(self.parser.get(), config, fault.path.split("#")) else root
                self.parser[place] = copy.deepcopy(ConfigParser(config)[place])
        self.parser.parse(reset=True)


def _same_parts(config: Any, known: Any, path: list[str]) -> bool:
    """Whether both have a value at the path, within the same components."""
    for step in path:
        if not (isinstance(config, dict) and isinstance(known, dict) and step in config and step in known):
            return False
        if config.get("_target_") != known.get("_target_"):
            return False
        config, known = config[step], known[step]
    return True


def _innermost(error: BaseException) -> BaseException:
    met = {id(error)}  # a chain may be a ring: what is raised again from its own consequence
    while (cause := error.__cause__ or error.__context__) is not None and id(cause) not in met:
        error = cause
        met.add(id(error))
    return error


def _is_refusal(error: BaseException) -> bool:
    """Whether something refuses its arguments, as opposed to an operation that needs values of tensors."""
    words = str(error)
    if isinstance(error, NotImplementedError) or "meta" in words.lower() or "fused" in words:
        return False
    return isinstance(error, (*_REFUSALS, RuntimeError))
