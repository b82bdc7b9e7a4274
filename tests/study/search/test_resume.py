"""A search that was killed, wherever, is resumed as the one that was not."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from perpeft_ray.config import SearchSettings, StudyConfig, TrainSettings, TrialConfig
from perpeft_ray.store.record import Searched
from perpeft_ray.study.plan import TrialSpec
from perpeft_ray.study.search.suggest import (
    Search,
    open_journal,
    open_searches,
    optuna_study_name,
)

COUNT = 15
STUDY = StudyConfig(
    train=TrainSettings(epochs=2, personal_epochs=4), search=SearchSettings(trials=COUNT)
)


def score(config: TrialConfig) -> float:
    assert config.conditioning_weight is not None
    return round(0.1 * (config.variant == "lora") + config.conditioning_weight / 7, 4)


class Runs:
    """Runs of a study's search, and the rows that its trials have written."""

    def __init__(self, journal: Path) -> None:
        self.journal = journal
        self.rows: dict[str, Searched] = {}

    def resume(self, count: int) -> Search:
        """As `run_ablation` does; finishes trials until there are `count` rows."""
        search = open_searches(STUDY, self.journal, self.rows)["perpeft"]
        while len(self.rows) < count:
            spec = search.ask("running")
            self.write(spec)
            search.tell("running", "COMPLETE", score(spec.config))
        return search

    def write(self, spec: TrialSpec) -> None:
        key = spec.config.config_hash
        self.rows[key] = Searched(spec.config, "COMPLETE", score(spec.config), 7, [])

    @property
    def optuna(self) -> optuna.Study:
        name = optuna_study_name(STUDY, "perpeft")
        return optuna.load_study(study_name=name, storage=open_journal(self.journal))

    def states(self) -> list[TrialState]:
        return [trial.state for trial in self.optuna.trials]


@pytest.mark.parametrize("kills", [(12,), (2, 3, 11)])
@pytest.mark.parametrize("when", ["training", "row written", "two training", "suggesting"])
def test_a_killed_search_ends_with_as_many_different_trials(
    tmp_path: Path, kills: tuple[int, ...], when: str
) -> None:
    runs = Runs(tmp_path / "journal")
    for kill in kills:
        search = runs.resume(kill)
        done = list(runs.rows)
        if when == "suggesting":
            runs.optuna.enqueue_trial({"variant": "lora"})
            runs.optuna.ask().suggest_categorical("groups", STUDY.search.groups)
            runs.optuna.enqueue_trial({"variant": "ia3"})
            continue
        spec = search.ask("lost")
        if when == "row written":
            runs.write(spec)
        if when == "two training":
            search.ask("also lost")
        assert list(runs.rows)[: len(done)] == done
    runs.resume(COUNT)
    assert runs.states().count(TrialState.COMPLETE) == len(runs.rows) == COUNT
    assert {TrialState.RUNNING, TrialState.WAITING}.isdisjoint(runs.states())


def test_a_resumed_search_tries_what_the_unbroken_one_does(tmp_path: Path) -> None:
    """Stopped between two trials; what it suggests depends on the journal alone."""
    unbroken, stopped = Runs(tmp_path / "a"), Runs(tmp_path / "b")
    unbroken.resume(COUNT)
    for count in (4, 11, COUNT):
        stopped.resume(count)
    assert list(stopped.rows) == list(unbroken.rows)


def test_interrupted_trials_come_first_also_after_two_kills(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "journal")
    search = runs.resume(3)
    first, second = search.ask("a"), search.ask("b")
    assert runs.resume(3).ask("c") == first  # killed again, with only the first in progress
    once_more = runs.resume(3)
    assert [once_more.ask("d"), once_more.ask("e")] == [first, second]


def test_rows_say_how_a_trial_ended_that_optuna_was_not_told_of(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "journal")
    search = runs.resume(0)
    complete, pruned, lost = (search.ask(name) for name in "abc")
    runs.write(complete)
    runs.rows[pruned.config.config_hash] = Searched(pruned.config, "PRUNED", None, None, [(4, 0.1)])
    for _ in range(2):  # the second time there is nothing to do
        search = open_searches(STUDY, runs.journal, runs.rows)["perpeft"]
        assert runs.states() == [TrialState.COMPLETE, TrialState.PRUNED]
    assert [trial.value for trial in runs.optuna.trials] == [score(complete.config), 0.1]
    assert search.ask("next") == lost


def test_halving_remembers_the_trials_of_earlier_runs(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "journal")
    search = runs.resume(0)
    lora = search.ask("first")
    assert not search.report("first", 2 + STUDY.search.grace_epochs, 0.2)
    runs.write(lora)
    search = runs.resume(3)
    assert search.ask("next").config.variant == "lora"
    assert search.report("next", 2 + STUDY.search.grace_epochs, 0.1)
