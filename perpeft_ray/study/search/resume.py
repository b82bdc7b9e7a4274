"""What earlier runs have left of a study's search, so that the next one goes on as if it were one.

A process can be killed between any two lines; what is true is what `trials/` has.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path

import optuna
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, TrialState

from perpeft_ray.config import StudyConfig
from perpeft_ray.study.plan import search_trial
from perpeft_ray.study.record import Searched
from perpeft_ray.study.search.space import Setting, suggest_setting
from perpeft_ray.study.search.suggest import open_journal, optuna_study_name


def settle(study: StudyConfig, journal: Path, ended: Mapping[str, Searched]) -> None:
    """Give every trial of the journal that is RUNNING or WAITING its end; no journal is no trial.

    `ended`: the search's trials that have a row, by config hash. A trial whose row was written
    before Optuna could be told is what the row says, any other FAIL.
    """
    if not journal.exists():
        return
    _cut_last_line(journal)
    storage = open_journal(journal)
    for name in optuna.get_all_study_names(storage):
        search = optuna.load_study(study_name=name, storage=storage)
        for _ in search.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            search.tell(search.ask(), state=TrialState.FAIL)
        known = (TrialState.COMPLETE, TrialState.PRUNED)
        told = {_key(study, t) for t in search.get_trials(deepcopy=False, states=known)}
        for trial in search.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            key = _key(study, trial) if name == optuna_study_name(study) else None
            row = ended.get(key or "")
            if row is None or key in told:
                search.tell(trial.number, state=TrialState.FAIL)
            elif row.score is None:
                search.tell(trial.number, state=TrialState.PRUNED)
            else:
                values = [row.score, row.size] if study.search.pareto else row.score
                search.tell(trial.number, values)  # type: ignore[arg-type]  # row.size is there


def unfinished_settings(study: StudyConfig, journal: Path, ended: Collection[str]) -> list[Setting]:
    """Settings that were suggested and have no COMPLETE or PRUNED row, in their order.

    They are run first, so that a search that was interrupted tries what it would have tried, and a
    trial goes on from its checkpoint.
    """
    settings = {_key(study, trial): _setting(study, trial) for trial in _trials(study, journal)}
    return [setting for key, setting in settings.items() if setting and key not in ended]


def sampler_after(study: StudyConfig, journal: Path) -> TPESampler:
    """The sampler of the study's search, as it was after its last suggestion.

    What it suggests next depends on how often it has drawn at random, which no journal holds: what
    it has suggested is suggested again, in memory.
    """
    sampler = TPESampler(seed=study.search.seed)
    past = _trials(study, journal)
    directions = ["maximize", "minimize"] if study.search.pareto else ["maximize"]
    again = optuna.create_study(sampler=sampler, directions=directions)  # type: ignore[arg-type]  # literals
    to_tell = [t for t in past if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    for trial in past:
        if _setting(study, trial) is None:
            continue
        known = [t for t in to_tell if _ended_before(t, trial)]
        again.add_trials(known)
        to_tell = [t for t in to_tell if t not in known]
        again.enqueue_trial(trial.system_attrs.get("fixed_params", {}))
        suggest_setting(study, again.ask())
    return sampler


def _cut_last_line(journal: Path) -> None:
    """Remove a line that was being written when a process ended or a disk was full.

    Optuna passes over it, but would append to it, and then read no journal any more.
    """
    whole = journal.read_bytes()
    end = whole.rfind(b"\n") + 1
    if end < len(whole):
        os.truncate(journal, end)


def _trials(study: StudyConfig, journal: Path) -> list[FrozenTrial]:
    if not journal.exists():
        return []
    storage = open_journal(journal)
    name = optuna_study_name(study)
    if name not in optuna.get_all_study_names(storage):
        return []
    return optuna.load_study(study_name=name, storage=storage).get_trials(deepcopy=False)


def _key(study: StudyConfig, trial: FrozenTrial) -> str | None:
    setting = _setting(study, trial)
    return None if setting is None else search_trial(study, setting).config.config_hash


def _setting(study: StudyConfig, trial: FrozenTrial) -> Setting | None:
    """What a trial was given; None where the process was killed while it was being suggested."""
    try:
        return suggest_setting(study, optuna.trial.FixedTrial(trial.params))  # type: ignore[arg-type]  # it suggests alike
    except ValueError:
        return None


def _ended_before(one: FrozenTrial, other: FrozenTrial) -> bool:
    assert other.datetime_start is not None
    return one.datetime_complete is not None and one.datetime_complete <= other.datetime_start
