"""`perpeft COMMAND …`: the commands by name, and how a command ends."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module

from perpeft_ray.errors import InputError, StudyStoppedError

USAGE = """usage: perpeft COMMAND ...

Which personalised PEFT set-up is best for a catalogue.

commands:
{commands}

perpeft COMMAND --help has the options of a command."""


@dataclass(frozen=True)
class Command:
    """A subcommand: a function of the arguments after its name, imported when it is called."""

    summary: str
    module: str
    function: str

    def __call__(self, arguments: Sequence[str]) -> None:
        """Run the command."""
        getattr(import_module(self.module), self.function)(arguments)


COMMANDS = {
    "study": Command(
        "search, compare and repeat; the same as studies/ablation_peft.py",
        "perpeft_ray.cli.study",
        "study",
    ),
    "doctor": Command(
        "check a cluster before a study and say what to change; the options of study",
        "perpeft_ray.cli.doctor",
        "doctor",
    ),
    "tables": Command(
        "print the tables of a study again: perpeft tables STUDY; the paper's: --paper",
        "perpeft_ray.cli.results",
        "tables",
    ),
    "report": Command(
        "write a study's tables, figures and report.html again: perpeft report STUDY",
        "perpeft_ray.cli.results",
        "report",
    ),
    "variants": Command(
        "the PEFT variants and their sizes on an encoder: perpeft variants --encoder NAME",
        "perpeft_ray.cli.variants",
        "variants",
    ),
    "export": Command(
        "a finished trial as a model of its own: perpeft export STUDY DIR",
        "perpeft_ray.cli.models",
        "export",
    ),
    "explain": Command(
        "what a trial's modules do: perpeft explain item|user STUDY ID",
        "perpeft_ray.cli.explain",
        "explain",
    ),
    "recommend": Command(
        "what users may want next: perpeft recommend DIR --history ID ...",
        "perpeft_ray.cli.models",
        "recommend",
    ),
    "prepare": Command(
        "raw data into a folder: perpeft prepare amazon2023|release|parquet --help",
        "perpeft_ray.data.prepare.cli",
        "prepare",
    ),
}
"""In the order in which they are listed."""


def main() -> None:
    """The console script `perpeft`."""
    run(lambda: _command(sys.argv[1:]))


def run(command: Callable[[], None]) -> None:
    """Run a command and exit: 0 done, 2 bad input (one line on standard error), 1 anything else."""
    try:
        command()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except StudyStoppedError as stopped:
        print(f"error: {stopped}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted; the same command continues the study", file=sys.stderr)
        sys.exit(1)


def usage() -> str:
    """What `perpeft --help` prints."""
    width = max(map(len, COMMANDS)) + 2
    lines = (f"  {name:<{width}}{command.summary}" for name, command in COMMANDS.items())
    return USAGE.format(commands="\n".join(lines))


def _command(arguments: Sequence[str]) -> None:
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
    elif name in COMMANDS:
        COMMANDS[name](rest)
    else:
        raise InputError(f"the command must be one of {', '.join(COMMANDS)}, but is {name!r}")
