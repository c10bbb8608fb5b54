"""The command ``completion``: what a shell needs to complete the command line."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import medmdm.cli.bundles as bundles

SUMMARY = 'print the completion of bash or zsh: eval "$(medmdm completion bash)"'

_SCRIPT = """_medmdm() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}" words=""
  if [ "$COMP_CWORD" -eq 1 ]; then words="{commands}"; else
    case "${{COMP_WORDS[1]}} $previous" in
{values}
      *) case "${{COMP_WORDS[1]}}" in
{keys}
      esac ;;
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _medmdm medmdm"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``completion`` to its parser."""
    parser.add_argument("shell", choices=("bash", "zsh"))


def run(args: argparse.Namespace) -> None:
    """Print the script."""
    # argparse has no public way to ask a parser what it takes.
    (commands,) = (a for a in args.parser._actions if isinstance(a, argparse._SubParsersAction))
    keys = {
        name: [o for action in one._actions for o in action.option_strings if o.startswith("--")]
        for name, one in commands.choices.items()
        if name not in bundles.COMMANDS
    }
    values = []
    for name in bundles.COMMANDS:
        found = dict(bundles.keys(name))
        keys[name] = ["--config", "--help", *(f"--{key}" for key in found)]
        values += [
            f'      "{name} --{k}") words="{" ".join(w)}" ;;' for k, part in found.items() if (w := _words(part))
        ]
    lines = [f'        {name}) words="{" ".join(words)}" ;;' for name, words in keys.items()]
    if args.shell == "zsh":
        print("autoload -U +X bashcompinit && bashcompinit")
    print(_SCRIPT.format(commands=" ".join(keys), values="\n".join(values), keys="\n".join(lines)))


def _words(schema: Mapping[str, Any]) -> list[str]:
    """Return the values that a key can have, where they are few."""
    if "boolean" in schema.get("type", ()):
        return ["true", "false"]
    return [str(word) for option in schema.get("anyOf", ()) for word in option.get("enum", ())]
