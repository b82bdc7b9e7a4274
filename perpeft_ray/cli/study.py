"""`perpeft study`, and the scripts of `studies/`: from a command line to a finished study."""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, Self, get_args

import tyro

from perpeft_ray.cli.parsing import parse, run
from perpeft_ray.cli.results import show_results
from perpeft_ray.config import AUTO, StudyConfig
from perpeft_ray.config.presets import Preset, preset
from perpeft_ray.errors import InputError


@dataclass(frozen=True)
class Question:
    """The question of a script in `studies/`."""

    scientific: tuple[str, ...] = ("method", "variant")
    """Fields of `TrialConfig` that the study compares. Of the others, searched ones and the seed
    are nuisance parameters; the rest is fixed."""
    defaults: Callable[[StudyConfig], StudyConfig] = lambda preset: preset
    """From a preset to the script's own defaults."""
    run: str = "perpeft_ray.study.questions:run_ablation"
    """The function (Study, Progress) that runs the study's missing trials, as module:function;
    imported late, so that `--help` and errors appear at once."""


@dataclass(frozen=True)
class StudyOptions:
    """The options of every command line that describes a study."""

    config: Annotated[StudyConfig, tyro.conf.arg(name="")]
    preset: Preset = "toyshop"
    """Defaults: sized for toyshop on two cores, toyshop in full, or the paper's constants."""
    parallel_workers: Literal[0] = 0
    """Only 0, for command lines of earlier versions; compare modes with two studies."""
    given: tyro.conf.Suppress[tuple[str, ...]] = ()
    """Names of the options on the command line."""

    def __post_init__(self) -> None:
        if not self.config.is_toyshop and "encoder" not in self.given:
            # The preset's encoder is for the toyshop.
            object.__setattr__(self, "config", replace(self.config, encoder=AUTO))

    @classmethod
    def defaults(cls, arguments: Sequence[str], question: Question | None = None) -> Self:
        """Defaults of a command line: its preset, as changed by a script."""
        given = {}
        for word, following in zip(arguments, [*arguments, ""][1:], strict=True):
            if word.startswith("--"):
                name, equals, value = word.removeprefix("--").partition("=")
                given[name.replace("-", "_")] = value if equals else following
        presets: tuple[Preset, ...] = get_args(Preset)  # the full parser refuses others
        chosen = next((name for name in presets if name == given.get("preset")), presets[0])
        config = (question or Question()).defaults(preset(chosen))
        return cls(config, chosen, given=tuple(given))


@dataclass(frozen=True)
class StudyCommand(StudyOptions):
    """`perpeft study`. Without --preset, a study of your own data chooses its settings."""

    budget: Annotated[str, tyro.conf.arg(help_behavior_hint="")] = ""
    """Time for a study of your own data, such as 2h; it determines search.trials."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the plan of a study of your own data, and stop."""

    def run(self) -> None:
        """Run the study; for your own data, print the plan first."""
        config = self.config
        if config.is_toyshop or "preset" in self.given:
            for name in {"budget", "dry_run"} & set(self.given):
                fixed = "for the toyshop" if config.is_toyshop else f"with --preset {self.preset}"
                raise InputError(
                    f"`{name}` must be left out {fixed}, whose settings are fixed; it is for your "
                    "own data: --dataset parquet:FOLDER, without --preset"
                )
        else:
            from perpeft_ray.api.plan import plan_study
            from perpeft_ray.store.folder import storage_folder

            # Raw data are prepared once, where the study will find them.
            cache = None if self.dry_run else storage_folder(config.storage) / ".cache"
            fetch = not self.dry_run
            plan = plan_study(config, self.budget, given=self.given, cache=cache, fetch=fetch)
            if self.dry_run or not plan.begun:  # the study itself says whether it resumes
                print(plan, flush=True)
            config = plan.config
        if not self.dry_run:
            run_and_show(config)


def ask(question: Question, description: str | None) -> None:
    """Run a script of `studies/`: read the command line, run, print and report."""
    arguments = sys.argv[1:]
    if question == Question():
        default = StudyCommand.defaults(arguments)
        run(lambda: parse(StudyCommand, arguments, description=description, default=default).run())
    else:
        run(lambda: run_and_show(parse_study(arguments, description, question), question))


def parse_study(
    arguments: Sequence[str], description: str | None = None, question: Question | None = None
) -> StudyConfig:
    """Parse a script's command line into a study: a preset with overrides.

    Every field has its dotted name (`--search.max-concurrent 2`). Prints help and exits for
    `--help`. Raises InputError, in one line, for unknown fields and bad values.
    """
    default = StudyOptions.defaults(arguments, question)
    return parse(StudyOptions, arguments, description=description, default=default).config


def run_and_show(config: StudyConfig, question: Question | None = None) -> None:
    """Run or resume a study, print its tables and write its report.

    Raises InputError before anything is written.
    """
    from perpeft_ray.api.study import open_study
    from perpeft_ray.study.run import run_study

    question = question or Question()
    place = run_study(
        config,
        lambda *study: pkgutil.resolve_name(question.run)(*study),
        scientific=question.scientific,
    )
    show_results(open_study(place, config.metrics.k))
