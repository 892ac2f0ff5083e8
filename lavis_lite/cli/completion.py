"""`python -m lavis_lite completion bash|zsh|fish`: a script that completes commands, options and recipes."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
from collections.abc import Sequence

from lavis_lite.cli import data
from lavis_lite.cli.console import SCRIPT, command_parser
from lavis_lite.config.recipes import recipes

SHELLS = ("bash", "zsh", "fish")
WITH_RECIPES = ("train", "evaluate", "fetch", "doctor")


def main(argv: Sequence[str]) -> int:
    """Print the script of a shell."""
    arguments = command_parser("completion", "Print a script that completes `lavis-lite` in a shell. For bash: "
                               "lavis-lite completion bash >> ~/.bashrc", ["bash", "fish"])
    arguments.add_argument("shell", choices=SHELLS, help="which shell")
    shell = arguments.parse_args(list(argv)).shell
    print({"bash": bash, "zsh": zsh, "fish": fish}[shell]())
    return 0


def words() -> dict[str, list[str]]:
    """Command -> what may follow it: its options, the commands of `data`, names of recipes."""
    from lavis_lite.cli.main import COMMANDS

    known = {name: options(name.replace("-", "_")) for name in COMMANDS if name != "data"}
    known["data"] = [*data.COMMANDS, *sorted({option for name in data.COMMANDS
                                              for option in options(f"data_{name.replace('-', '_')}")})]
    for name in WITH_RECIPES:
        known[name] += [recipe.name for recipe in recipes()]
    known["completion"] += SHELLS
    return known


def options(module: str) -> list[str]:
    """The options of a command, read from its help page."""
    page = io.StringIO()
    with contextlib.redirect_stdout(page), contextlib.suppress(SystemExit):
        importlib.import_module(f"lavis_lite.cli.{module}").main(["--help"])
    defined = re.findall(r"^  (-.*?)(?:  |$)", page.getvalue(), re.MULTILINE)
    return sorted(set(re.findall(r"--[a-z][\w-]*", " ".join(defined))))


def bash() -> str:
    """A function that completes by the first word, and the line that registers it."""
    known = words()
    return "\n".join([
        "_lavis_lite() {",
        f"  local words='{' '.join(known)}'",
        '  [ "$COMP_CWORD" -gt 1 ] && case "${COMP_WORDS[1]}" in',
        *(f"    {name}) words='{' '.join(found)}' ;;" for name, found in known.items()),
        "    *) words='' ;;",
        "  esac",
        '  COMPREPLY=($(compgen -W "$words" -- "${COMP_WORDS[COMP_CWORD]}"))',
        "}",
        f"complete -o default -F _lavis_lite {SCRIPT}"])


def zsh() -> str:
    """The script of bash, which zsh runs through its own emulation."""
    return f"autoload -U +X bashcompinit && bashcompinit\n{bash()}"


def fish() -> str:
    """One line for each command and for each of its words."""
    from lavis_lite.cli.main import COMMANDS

    lines = [f"complete -c {SCRIPT} -n __fish_use_subcommand -f -a {name} -d '{quoted}'"
             for name, what in COMMANDS.items() for quoted in [what.replace("'", "\\'")]]
    for name, found in words().items():
        seen = f"complete -c {SCRIPT} -n '__fish_seen_subcommand_from {name}'"
        lines += [f"{seen} -l {word[2:]}" if word.startswith("--") else f"{seen} -a {word}" for word in found]
    return "\n".join(lines)
