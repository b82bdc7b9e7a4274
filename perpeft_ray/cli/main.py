"""`perpeft COMMAND …`: the commands by name, as one command line."""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Annotated, Any

import tyro

from perpeft_ray.cli.parsing import nearest, parse, run
from perpeft_ray.errors import InputError


@dataclass(frozen=True)
class Command:
    """A subcommand: its text in `--help`, and its options."""

    summary: str
    options: str | Mapping[str, Command]
    """A frozen dataclass with a method `run`, as module:class, imported when the command is named,
    or subcommands. The module must not import torch or Ray, so that `--help` and errors appear at
    once."""


COMMANDS: Mapping[str, Command] = {
    "study": Command(
        "Search, compare and repeat; the same as studies/ablation_peft.py.",
        "perpeft_ray.cli.study:StudyCommand",
    ),
    "doctor": Command(
        "Check a cluster or this machine before a study, with the study's own options, and say "
        "what to change. Joins the Ray that RAY_ADDRESS names, or starts one. Exit status: 0 "
        "ready, 1 not, 2 bad input.",
        "perpeft_ray.cli.doctor:Doctor",
    ),
    "tables": Command(
        "Print a study's table and verdict again, every table, or the paper's.",
        "perpeft_ray.cli.results:Tables",
    ),
    "power": Command(
        "Estimate from a study's own spread how many users or seeds would show an effect.",
        "perpeft_ray.cli.results:Power",
    ),
    "report": Command(
        "Write a study's tables, figures and report.html again.", "perpeft_ray.cli.results:Report"
    ),
    "variants": Command(
        "List the PEFT variants with the size of a group's module on an encoder.",
        "perpeft_ray.cli.variants:Variants",
    ),
    "export": Command(
        "Write a finished trial to a new folder that works without the study.",
        "perpeft_ray.cli.models:Export",
    ),
    "pack": Command(
        "Put the weights, data and encoder that export and explain need into a study's folder, so "
        "that a copy of it works on another machine.",
        "perpeft_ray.cli.models:Pack",
    ),
    "explain": Command(
        "Show what a trial's modules do, in the terminal and as a page.",
        {
            "item": Command(
                "Show where two groups' modules look in an item's title and image, and the item's "
                "neighbours for each.",
                "perpeft_ray.cli.explain:Item",
            ),
            "user": Command(
                "Show a user's history, and recommendations by the own group's module, the global "
                "one and another group's.",
                "perpeft_ray.cli.explain:User",
            ),
        },
    ),
    "recommend": Command(
        "Recommend items to one user, or to every user of a table.",
        "perpeft_ray.cli.models:Recommend",
    ),
    "prepare": Command(
        "Make a folder for --dataset parquet:PATH from raw data. Rerun the same command to resume.",
        {
            "amazon2023": Command(
                "A category of the Amazon Reviews 2023, from its published raw files.",
                "perpeft_ray.cli.prepare:Amazon2023",
            ),
            "release": Command(
                "A data set of the authors' published archive.", "perpeft_ray.cli.prepare:Release"
            ),
            "parquet": Command(
                "Your own folder in the data format, checked and repaired.",
                "perpeft_ray.cli.prepare:Parquet",
            ),
            "table": Command(
                "CSV, TSV, JSON lines or Parquet tables of a shop, and its photos.",
                "perpeft_ray.cli.prepare:Table",
            ),
        },
    ),
}
"""In the order of `--help`."""

_DESCRIPTION = """Find out which personalised PEFT set-up is best for a catalogue.

perpeft COMMAND --help has the options of a command; perpeft --version prints versions."""


def main() -> None:
    """The console script `perpeft`."""
    run(lambda: perpeft(sys.argv[1:]))


def perpeft(arguments: Sequence[str]) -> None:
    """Run a command line. Raises InputError, in one line, for bad input."""
    if list(arguments) == ["--version"]:
        print(version())
        return
    arguments = arguments or ["--help"]
    kind = _union("perpeft", COMMANDS, arguments)
    command: Any = parse(kind, arguments, prog="perpeft", description=_DESCRIPTION)
    command.run()


def version() -> str:
    """Version of this package, its git revision in a clone, and the main libraries' versions."""
    from perpeft_ray.store.description import git_revision, versions

    found = versions()
    revision = git_revision()
    own = f"perpeft {found['perpeft-ray']}" + (f" ({revision})" if revision else "")
    return "\n".join(
        [own, *(f"{name} {found[name]}" for name in ("torch", "ray", "transformers", "peft"))]
    )


@dataclass(frozen=True)
class _NotNamed:
    """Stands for the options of commands that the command line does not name."""


def _union(path: str, commands: Mapping[str, Command], arguments: Sequence[str]) -> Any:
    """The commands as a type for tyro; imports only the named one's options."""
    named, *rest = arguments or [""]
    if named not in ("-h", "--help", *commands):
        words = f"`{path}` must be followed by one of {', '.join(commands)}"
        but = f", but is by {named!r}{nearest(named, list(commands))}" if named else ""
        raise InputError(words + but)
    kinds = []
    for name, command in commands.items():
        kind: Any = _NotNamed
        default: Any = tyro.MISSING_NONPROP
        if name == named:
            if isinstance(command.options, str):
                kind = pkgutil.resolve_name(command.options)
            else:
                kind = _union(f"{path} {name}", command.options, rest)
            if hasattr(kind, "defaults"):
                default = kind.defaults(rest)
        described = tyro.conf.subcommand(
            name, default=default, description=command.summary, constructor=kind
        )
        kinds.append(Annotated[Any, described])
    return reduce(or_, kinds)
