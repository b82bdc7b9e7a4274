"""Suggestions without Ray: each setting once, seeded, and the journal's states."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.result import DONE

from perpeft_ray.config import SearchSettings, StudyConfig, TrainSettings
from perpeft_ray.study.plan import search_trial
from perpeft_ray.study.search.suggest import Suggestions, open_journal, optuna_study_name
from perpeft_ray.study.trainable import OBJECTIVE

STUDY = StudyConfig(train=TrainSettings(epochs=2, personal_epochs=4))


def result(epoch: int, score: float, done: bool = False) -> dict[str, object]:
    return {"record/epoch": epoch, OBJECTIVE: score, DONE: done}


def finish(search: Suggestions, trial_id: str, score: float) -> None:
    search.on_trial_result(trial_id, result(6, score))
    search.on_trial_complete(trial_id, result(6, score, done=True))


def run(study: StudyConfig, journal: Path, count: int) -> list[dict[str, object]]:
    search = Suggestions(study, journal, tried=(), sizes=dict)
    settings = []
    for index in range(count):
        setting = search.suggest_setting(str(index))
        settings.append(setting)
        finish(search, str(index), 0.1 * (setting["variant"] == "lora") + 0.001 * index)
    return settings


def journal_states(journal: Path, study: StudyConfig) -> list[TrialState]:
    loaded = optuna.load_study(study_name=optuna_study_name(study), storage=open_journal(journal))
    return [trial.state for trial in loaded.trials]


def test_same_seed_gives_same_suggestions_and_another_seed_others(tmp_path: Path) -> None:
    first = run(STUDY, tmp_path / "a", 16)
    assert run(STUDY, tmp_path / "b", 16) == first
    other = replace(STUDY, search=replace(STUDY.search, seed=1))
    assert run(other, tmp_path / "c", 16) != first


def test_variants_take_turns_and_no_setting_comes_twice(tmp_path: Path) -> None:
    small = SearchSettings(
        ranks=(2, 4), groups=(4,), conditioning_weights=(0.5, 1.0), learning_rates=(0.01,)
    )
    study = replace(STUDY, search=small)
    settings = run(study, tmp_path / "journal", 8)  # all there are: 2·2 + 2 + 2
    variants = [setting["variant"] for setting in settings]
    assert variants == ["lora", "ia3", "iisan"] * 2 + ["lora"] * 2
    hashes = {search_trial(study, setting).config.config_hash for setting in settings}
    assert len(hashes) == 8
    states = journal_states(tmp_path / "journal", study)
    assert states.count(TrialState.COMPLETE) == 8


def test_an_exhausted_space_is_told(tmp_path: Path) -> None:
    small = SearchSettings(
        variants=("ia3",), groups=(4,), conditioning_weights=(0.5,), learning_rates=(0.01,)
    )
    search = Suggestions(replace(STUDY, search=small), tmp_path / "journal", tried=(), sizes=dict)
    assert search.suggest_setting("0") == {
        "variant": "ia3",
        "groups": 4,
        "conditioning_weight": 0.5,
        "learning_rate": 0.01,
    }
    with pytest.raises(RuntimeError, match="every setting of the search space has been tried"):
        search.suggest_setting("1")


def test_a_continued_search_tries_what_is_new(tmp_path: Path) -> None:
    first = run(STUDY, tmp_path / "journal", 5)
    tried = [search_trial(STUDY, setting).config.config_hash for setting in first]
    search = Suggestions(STUDY, tmp_path / "journal", tried, dict)
    for index in range(10):
        setting = search.suggest_setting(f"again-{index}")
        assert setting not in first
        finish(search, f"again-{index}", 0.1)


def test_another_space_or_fixed_value_is_another_optuna_study() -> None:
    names = {
        optuna_study_name(STUDY),
        optuna_study_name(replace(STUDY, train=TrainSettings(epochs=3, personal_epochs=4))),
        optuna_study_name(replace(STUDY, search=SearchSettings(groups=(4, 6)))),
    }
    assert len(names) == 3
    more = replace(STUDY, search=replace(STUDY.search, trials=20, max_concurrent=1))
    assert optuna_study_name(more) == optuna_study_name(STUDY)


@pytest.mark.filterwarnings("error")
def test_states_are_complete_pruned_and_fail(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    search = Suggestions(STUDY, journal, tried=(), sizes=dict)
    for trial_id in ("complete", "pruned", "failed", "lost"):
        search.suggest_setting(trial_id)
        search.on_trial_result(trial_id, {"record/epoch": 1, DONE: False})  # not validated
    finish(search, "complete", 0.3)
    search.on_trial_result("pruned", result(3, 0.1))
    search.on_trial_complete("pruned", result(4, 0.2, done=True))
    search.on_trial_complete("failed", error=True)
    expected = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING]
    assert journal_states(journal, STUDY) == expected
    loaded = optuna.load_study(study_name=optuna_study_name(STUDY), storage=open_journal(journal))
    assert [trial.value for trial in loaded.trials[:2]] == [0.3, 0.2]
    assert loaded.trials[1].intermediate_values == {3: 0.1, 4: 0.2}


def test_the_journal_names_objectives_and_trials(tmp_path: Path) -> None:
    setting = run(STUDY, tmp_path / "journal", 1)[0]
    name, storage = optuna_study_name(STUDY), open_journal(tmp_path / "journal")
    loaded = optuna.load_study(study_name=name, storage=storage)
    assert loaded.metric_names == ["validation NDCG@20"]
    (trial,) = loaded.trials
    assert trial.user_attrs["trial_id"] == search_trial(STUDY, setting).trial_id  # type: ignore[arg-type]
