"""The ablation study: the search of every method, then methods × variants × seeds.

Only validation decides what to run; only the trials of the last phase read test. Finished trials
are skipped, so the same command resumes an interrupted study.
"""

from __future__ import annotations

from collections.abc import Iterable

from perpeft_ray.config import VARIED, TrialConfig
from perpeft_ray.study.agenda import Agenda
from perpeft_ray.study.plan import (
    TrialSpec,
    best_configs,
    count_trials,
    other_mode_trials,
    ready_trials,
    searching_methods,
)
from perpeft_ray.study.progress import Progress
from perpeft_ray.study.search.space import variants_of
from perpeft_ray.study.search.suggest import open_searches
from perpeft_ray.study.trainable import Study
from perpeft_ray.study.tuning import run_tune


def run_ablation(study: Study, progress: Progress) -> None:
    """Run the missing trials of the study; Ray must run (`ray_for`).

    The Optuna journal is `<study folder>/optuna.journal`.
    A method and variant without a finished search trial is omitted, with a warning. Raises
    RuntimeError if nothing of PerPEFT is left.
    """
    config, folder = study.config, study.folder
    finished = folder.finished()
    done = len([key for key in finished if key[0] != "settings"])
    searched = [name for name in VARIED if len(config.values(name)) > 1]
    progress.plan(max(count_trials(config), done), done, searched)
    searches = open_searches(config, study.folder.path / "optuna.journal", folder.searched())
    agenda = Agenda(
        finished,
        lambda searching: ready_trials(config, folder.searched().values(), searching),
        searches,
        folder.searched,
    )
    run_tune(study, agenda, progress, workers=config.workers)

    best = best_configs(folder.searched().values())
    perpeft = _best_perpeft(study)
    if perpeft is not None:
        others = other_mode_trials(config, perpeft)
        workers = config.parallel_workers if config.mode == "sequential" else config.workers
        run_tune(study, Agenda(folder.finished(), lambda _: others), progress, workers=workers)
    cells = [(m, v) for m in searching_methods(config) for v in variants_of(config, m)]
    for method, variant in cells:
        if (method, variant) not in best:
            name = f"{method} {variant or ''}".strip()
            progress.say(f"left out: {name} has no finished trial in the search")
    if "perpeft" in searches and perpeft is None:
        raise RuntimeError(f"no trial of the search has finished; {folder.path} has the errors")


def run_listed(
    study: Study,
    specs: Iterable[TrialSpec],
    progress: Progress,
    *,
    fresh_processes: bool = False,
) -> None:
    """Run the missing ones of these trials, which are not part of `run_ablation`.

    Ray must run. `fresh_processes` as in `run_tune`.
    """
    wanted = list(specs)
    finished = study.folder.finished()
    progress.extend(len(wanted), done=sum(spec.key in finished for spec in wanted))
    agenda = Agenda(finished, lambda _: wanted)
    run_tune(study, agenda, progress, workers=study.config.workers, fresh_processes=fresh_processes)


def _best_perpeft(study: Study) -> TrialConfig | None:
    """PerPEFT's best setting of all variants by validation; None without any."""
    rows = [row for row in study.folder.searched().values() if row.config.method == "perpeft"]
    scored = [row for row in rows if row.score is not None]
    return max(scored, key=lambda row: row.score or 0.0).config if scored else None
