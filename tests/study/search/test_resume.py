"""A search that was killed, wherever, goes on as the one that was not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.result import DONE

from perpeft_ray.config import StudyConfig, TrainSettings
from perpeft_ray.study.plan import search_trial
from perpeft_ray.study.record import Searched
from perpeft_ray.study.search.resume import sampler_after, settle, unfinished_settings
from perpeft_ray.study.search.schedule import AshaWithinVariant
from perpeft_ray.study.search.space import Setting
from perpeft_ray.study.search.suggest import Suggestions, open_journal, optuna_study_name
from perpeft_ray.study.trainable import OBJECTIVE, VALIDATED_STAGE3_EPOCHS

STUDY = StudyConfig(train=TrainSettings(epochs=2, personal_epochs=4))
COUNT = 15
"""Trials of the search: the first ten are drawn at random, then TPE reads the scores."""


def score(setting: Setting) -> float:
    return round(0.1 * (setting["variant"] == "lora") + setting["conditioning_weight"] / 7, 4)


def key(setting: Setting) -> str:
    return search_trial(STUDY, setting).config.config_hash


class Search:
    """A search and the rows that its trials have written."""

    def __init__(self, journal: Path) -> None:
        self.journal = journal
        self.rows: dict[str, Searched] = {}
        self.asked = 0

    def go_on(self, count: int) -> Suggestions:
        """As `run_ablation` does; finishes trials until there are `count` rows."""
        settle(STUDY, self.journal, self.rows)
        unfinished = unfinished_settings(STUDY, self.journal, self.rows)
        sampler = sampler_after(STUDY, self.journal)
        search = Suggestions(STUDY, self.journal, list(self.rows), dict, unfinished, sampler)
        while len(self.rows) < count:
            setting = self.suggest(search)
            self.write(setting)
            value = {"record/epoch": 6, OBJECTIVE: score(setting)}
            search.on_trial_complete(self.trial_id, {**value, DONE: True})
        return search

    def suggest(self, search: Suggestions) -> Setting:
        self.asked += 1
        self.trial_id = f"trial-{self.asked}"
        return search.suggest_setting(self.trial_id)

    def write(self, setting: Setting) -> None:
        self.rows[key(setting)] = Searched("COMPLETE", score(setting), 7, [])

    def states(self) -> list[TrialState]:
        storage = open_journal(self.journal)
        loaded = optuna.load_study(study_name=optuna_study_name(STUDY), storage=storage)
        return [trial.state for trial in loaded.trials]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    search = Search(tmp_path_factory.mktemp("unbroken") / "journal")
    search.go_on(COUNT)
    return list(search.rows)


@pytest.mark.parametrize("kills", [(12,), (2, 3, 11)])
@pytest.mark.parametrize("when", ["training", "row written", "two training", "suggesting"])
def test_a_killed_search_tries_what_the_unbroken_one_does(
    tmp_path: Path, unbroken: list[str], kills: tuple[int, ...], when: str
) -> None:
    search = Search(tmp_path / "journal")
    for kill in kills:
        running = search.go_on(kill)
        if when == "suggesting":
            running._ot_study.enqueue_trial({"variant": "lora"})  # type: ignore[attr-defined]  # private
            running._ot_study.ask().suggest_categorical("groups", STUDY.search.groups)  # type: ignore[attr-defined]  # private
            running._ot_study.enqueue_trial({"variant": "ia3"})  # type: ignore[attr-defined]  # private
        else:
            setting = search.suggest(running)
        if when == "row written":
            search.write(setting)
        if when == "two training":
            search.suggest(running)
    search.go_on(COUNT)
    assert search.states().count(TrialState.COMPLETE) == COUNT
    assert {TrialState.RUNNING, TrialState.WAITING}.isdisjoint(search.states())
    if when == "two training":  # in an unbroken search they would be side by side too
        assert set(list(search.rows)[: kills[0]]) <= set(unbroken)
        assert len(search.rows) == COUNT
    else:
        assert list(search.rows) == unbroken


def test_a_trial_that_was_interrupted_is_the_next_also_after_two_kills(tmp_path: Path) -> None:
    search = Search(tmp_path / "journal")
    running = search.go_on(3)
    first, second = search.suggest(running), search.suggest(running)
    again = search.go_on(3)  # killed again, with only the first in progress
    assert search.suggest(again) == first
    once_more = search.go_on(3)
    assert search.suggest(once_more) == first
    assert search.suggest(once_more) == second


def test_rows_tell_how_a_trial_ended_that_optuna_was_not_told_of(tmp_path: Path) -> None:
    search = Search(tmp_path / "journal")
    running = search.go_on(0)
    complete, pruned, lost = (search.suggest(running) for _ in range(3))
    search.write(complete)
    search.rows[key(pruned)] = Searched("PRUNED", None, None, [(4, 0.1)])
    settle(STUDY, search.journal, search.rows)
    assert search.states() == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]
    assert unfinished_settings(STUDY, search.journal, search.rows) == [lost]
    settle(STUDY, search.journal, search.rows)
    assert search.states() == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]
    settle(STUDY, tmp_path / "none", {})
    assert not (tmp_path / "none").exists()


def test_asha_remembers_the_trials_of_earlier_runs() -> None:
    study = replace(STUDY, search=replace(STUDY.search, grace_epochs=2))
    spec = search_trial(
        study,
        {
            "variant": "ia3",
            "groups": 8,
            "conditioning_weight": 0.5,
            "learning_rate": study.search.learning_rates[0],
        },
    )
    other = search_trial(
        study,
        {
            "variant": "ia3",
            "groups": 6,
            "conditioning_weight": 0.5,
            "learning_rate": study.search.learning_rates[0],
        },
    )

    class Trial:
        trial_id = "new"
        config = other.to_tune()

    def decision(scheduler: AshaWithinVariant) -> str:
        scheduler.on_trial_add(None, Trial())
        result = {"record/epoch": 4, VALIDATED_STAGE3_EPOCHS: 2, OBJECTIVE: 0.1}
        return scheduler.on_trial_result(None, Trial(), result)

    better = {spec.config.config_hash: Searched("COMPLETE", 0.3, 7, [(4, 0.2), (6, 0.3)])}
    worse = {spec.config.config_hash: Searched("PRUNED", None, None, [(4, 0.05)])}
    assert decision(AshaWithinVariant(study)) == "CONTINUE"
    assert decision(AshaWithinVariant(study, better)) == "STOP"
    assert decision(AshaWithinVariant(study, worse)) == "CONTINUE"
