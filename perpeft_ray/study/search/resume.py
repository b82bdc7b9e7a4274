"""What an earlier run has left of a study's search in the journal, made consistent with the rows.

A process can be killed between any two lines; what is true is what `trials/` has.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import optuna
from optuna.trial import TrialState

from perpeft_ray.config import StudyConfig
from perpeft_ray.store.record import Searched
from perpeft_ray.study.plan import search_trial, searching_methods
from perpeft_ray.study.search.suggest import open_journal, optuna_study_name, setting_of


def settle(study: StudyConfig, journal: Path, ended: Mapping[str, Searched]) -> None:
    """End every trial of the journal that is RUNNING or WAITING; no journal is no trial.

    `ended`: the search's trials that have a row, by config hash. A trial whose row was written
    before Optuna could be told ends as the row says, any other as FAIL.
    """
    if not journal.exists():
        return
    _cut_last_line(journal)
    storage = open_journal(journal)
    methods = {optuna_study_name(study, method): method for method in searching_methods(study)}
    for name in optuna.get_all_study_names(storage):
        search = optuna.load_study(study_name=name, storage=storage)
        for _ in search.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            search.tell(search.ask(), state=TrialState.FAIL)

        def row_of(trial: optuna.trial.FrozenTrial, name: str = name) -> Searched | None:
            method = methods.get(name)
            setting = None if method is None else setting_of(study, method, trial)
            if method is None or setting is None:
                return None
            return ended.get(search_trial(study, method, setting).config.config_hash)

        known = (TrialState.COMPLETE, TrialState.PRUNED)
        told = [row_of(trial) for trial in search.get_trials(deepcopy=False, states=known)]
        for trial in search.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            row = row_of(trial)
            if row is None or row in told:
                search.tell(trial.number, state=TrialState.FAIL)
            elif row.score is None:
                search.tell(trial.number, state=TrialState.PRUNED)
            else:
                values = [row.score, float(row.size or 0)]
                search.tell(trial.number, values if study.search.pareto else row.score)


def _cut_last_line(journal: Path) -> None:
    """Remove a line that was being written when a process ended or a disk was full.

    Optuna passes over it, but would append to it, and then read no journal any more.
    """
    whole = journal.read_bytes()
    end = whole.rfind(b"\n") + 1
    if end < len(whole):
        os.truncate(journal, end)
