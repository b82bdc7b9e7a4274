"""The ablation study: search, learning rates of the baselines, then methods × variants × seeds.

Only validation decides what is run; test is read by the trials of the last phase alone. Finished
trials are skipped, so the same command continues a study that was interrupted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from perpeft_ray.config import PEFT_METHODS
from perpeft_ray.study.agenda import Agenda
from perpeft_ray.study.plan import (
    Cell,
    Key,
    TrialSpec,
    best_configs,
    best_of,
    count_later_trials,
    other_mode_trials,
    ready_trials,
    search_trials,
    sweep_trials,
)
from perpeft_ray.study.progress import Progress
from perpeft_ray.study.search.resume import sampler_after, settle, unfinished_settings
from perpeft_ray.study.search.schedule import AshaWithinVariant
from perpeft_ray.study.search.suggest import Suggestions
from perpeft_ray.study.trainable import Study
from perpeft_ray.study.tuning import run_tune


def run_ablation(study: Study, progress: Progress) -> None:
    """Run what is missing of the study; Ray must be there (`ray_for`).

    The Optuna journal is `<study folder>/optuna.journal`; none of its trials is RUNNING after.
    A variant or baseline of which no trial has finished is left out, and told. Raises RuntimeError
    where this leaves nothing of the methods with a PEFT module.
    """
    config = study.config
    journal = study.folder / "optuna.journal"
    searched = search_trials(config) if PEFT_METHODS & set(config.methods) else []
    finished = study.recorder.finished()
    tried = {spec.config.config_hash for spec in searched if spec.key in finished}
    to_search = max(0, min(config.search.trials, len(searched)) - len(tried))
    own = {(phase, config_hash) for phase, config_hash in finished if phase != "settings"}
    done_later = len(own - {spec.key for spec in searched})
    later = max(count_later_trials(config), done_later)
    progress.plan(len(tried) + to_search + later, done=len(tried) + done_later)

    def ready(ended: Collection[Key], searching: bool) -> list[TrialSpec]:
        scores = study.recorder.search_scores()
        return ready_trials(config, scores, ended, searching=searching)

    before = study.recorder.searched()
    settle(config, journal, before)
    stops_early = config.search.asha and not config.search.pareto
    suggestions = None
    if to_search:
        unfinished = unfinished_settings(config, journal, tried)
        sampler = sampler_after(config, journal)
        sizes = study.recorder.search_sizes
        suggestions = Suggestions(config, journal, tried, sizes, unfinished, sampler)
    try:
        run_tune(
            study,
            Agenda(config, finished, ready, suggestions, to_search),
            progress,
            workers=config.workers,
            scheduler=AshaWithinVariant(config, before) if stops_early else None,
        )
    finally:
        settle(config, journal, study.recorder.searched())

    _run_other_mode(study, searched, progress)
    left_out = _left_out(study, searched)
    for method, variant in left_out:
        progress.say(f"left out: {method} {variant or ''} has no finished trial in the search")
    if searched and all(("perpeft", spec.config.variant) in left_out for spec in searched):
        raise RuntimeError(f"no trial of the search has finished; {study.folder} has the errors")


def run_listed(
    study: Study,
    specs: Iterable[TrialSpec],
    progress: Progress,
    *,
    fresh_processes: bool = False,
) -> None:
    """Run those of the trials, which `run_ablation` does not have, that have not been run.

    Ray must be there. `fresh_processes` as in `run_tune`.
    """
    wanted = list(specs)
    finished = study.recorder.finished()
    progress.extend(len(wanted), done=sum(spec.key in finished for spec in wanted))
    _run_missing(study, wanted, progress, fresh_processes=fresh_processes)


def _run_missing(
    study: Study, specs: Iterable[TrialSpec], progress: Progress, *, fresh_processes: bool = False
) -> None:
    finished = study.recorder.finished()
    missing = [spec for spec in specs if spec.key not in finished]
    if not missing:
        return
    agenda = Agenda(study.config, finished, lambda *_: missing)
    run_tune(
        study,
        agenda,
        progress,
        workers=max(spec.workers for spec in missing),
        fresh_processes=fresh_processes,
    )


def _run_other_mode(study: Study, searched: list[TrialSpec], progress: Progress) -> None:
    """PerPEFT's best setting in the other training mode, which may need Ray Train workers."""
    best = best_of(searched, study.recorder.search_scores())
    _run_missing(study, other_mode_trials(study.config, best.config) if best else [], progress)


def _left_out(study: Study, searched: list[TrialSpec]) -> list[Cell]:
    """Methods and variants that have no best config because none of their trials finished."""
    scores = study.recorder.search_scores()
    specs = [*searched, *sweep_trials(study.config, best_configs(searched, scores))]
    best = best_configs(specs, scores)
    cells = dict.fromkeys((spec.config.method, spec.config.variant) for spec in specs)
    return [cell for cell in cells if cell not in best]
