"""What a study runs for its question: the ablation, or trials that compare PerPEFT's settings.

Only validation decides what to run; the search never reads test. Finished trials are skipped, so
that the same command resumes an interrupted study. Ray must run (`ray_for`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from perpeft_ray.config import SEARCHABLE, VARIED, StudyConfig, TrialConfig
from perpeft_ray.metrics import on_front
from perpeft_ray.study.agenda import Agenda
from perpeft_ray.study.plan import (
    best_configs,
    count_trials,
    first_setting,
    ready_trials,
    searching_methods,
    settings_trials,
    variants_of,
)
from perpeft_ray.study.progress import Progress
from perpeft_ray.study.runtime import scratch_folder
from perpeft_ray.study.search import open_searches
from perpeft_ray.study.trainable import Study
from perpeft_ray.study.tuning import run_tune


def run_ablation(study: Study, progress: Progress) -> None:
    """The search of every method, then methods × variants × seeds.

    The Optuna journal is `<study folder>/optuna.journal`.
    A method and variant without a finished search trial is omitted, with a warning. Raises
    RuntimeError if nothing of PerPEFT is left.
    """
    config, folder = study.config, study.folder
    done = len([key for key in folder.finished() if key[0] != "settings"])
    varied = [name for name in VARIED if len(config.values(name)) > 1]
    progress.plan(max(count_trials(config), done), done, varied)
    searches = open_searches(config, folder.path / "optuna.journal", folder.searched())
    agenda = Agenda(
        folder,
        lambda searching: ready_trials(config, folder.searched().values(), searching),
        searches,
    )
    run_tune(study, agenda, progress)

    best = best_configs(folder.searched().values())
    for method in searching_methods(config):
        for variant in variants_of(config, method):
            if (method, variant) not in best:
                name = f"{method} {variant or ''}".strip()
                progress.say(f"left out: {name} has no finished trial in the search")
    if "perpeft" in searches and not any(method == "perpeft" for method, _ in best):
        raise RuntimeError(f"no trial of the search has finished; {folder.path} has the errors")


def run_sensitivity(study: Study, progress: Progress) -> None:
    """The ablation, then every value of every setting around the search's best, the others fixed,
    with every seed and test read."""
    run_ablation(study, progress)
    configs = (
        replace(config, **{setting.name: value})
        for (method, variant), config in best_configs(study.folder.searched().values()).items()
        if method == "perpeft"
        for setting in SEARCHABLE
        if setting.applies(method, variant)
        for value in study.config.values(setting.name)
    )
    _run_all(study, configs, progress)


def run_front(study: Study, progress: Progress) -> None:
    """The ablation, then the search's settings on its Pareto front by validation, with every seed
    and test read."""
    run_ablation(study, progress)
    rows = [
        row
        for row in study.folder.searched().values()
        if row.config.method == "perpeft" and row.status == "COMPLETE"
    ]
    front = on_front([row.size or 0 for row in rows], [row.score or 0.0 for row in rows])
    configs = (row.config for row, on in zip(rows, front, strict=True) if on)
    _run_all(study, configs, progress)


def run_efficiency(study: Study, progress: Progress) -> None:
    """The trials of `efficiency_configs`, each in a fresh process.

    Does not use other studies' trained trials, which were timed beside others; uses cached hidden
    states and frozen features.
    """
    with scratch_folder("perpeft-efficiency-") as folder:
        alone = replace(study, workspace=study.workspace.with_nothing_trained(folder))
        _run_all(alone, efficiency_configs(study.config), progress, fresh_processes=True)


def efficiency_configs(study: StudyConfig) -> list[TrialConfig]:
    """Each method and variant at every rank, with the first value of every other setting."""
    cells = (
        (method, first_setting(study, method, variant))
        for method in study.methods
        for variant in variants_of(study, method)
    )
    return [
        study.trial(method, seed=study.seeds[0], **setting | {"rank": rank})
        for method, setting in cells
        for rank in (study.values("rank") if "rank" in setting else (None,))
    ]


def _run_all(
    study: Study,
    configs: Iterable[TrialConfig],
    progress: Progress,
    *,
    fresh_processes: bool = False,
) -> None:
    """Run the missing ones of these settings, with every seed and test read.

    `fresh_processes` as in `run_tune`.
    """
    wanted = settings_trials(study.config, configs)
    finished = study.folder.finished()
    progress.extend(len(wanted), done=sum(spec.key in finished for spec in wanted))
    agenda = Agenda(study.folder, lambda _: wanted)
    run_tune(study, agenda, progress, fresh_processes=fresh_processes)
