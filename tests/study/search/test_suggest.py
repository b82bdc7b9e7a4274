"""The search without Ray: what is tried, in which order, and what the journal says of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from perpeft_ray.config import SearchSettings, StudyConfig, TrainSettings, TrialConfig
from perpeft_ray.study.search.suggest import START, open_journal, open_searches, optuna_study_name

STUDY = StudyConfig(
    train=TrainSettings(epochs=2, personal_epochs=4),
    search=SearchSettings(trials=18, learning_rates=(1e-3, 3e-3, 1e-2)),
)


def score(config: TrialConfig) -> float:
    weight = config.conditioning_weight or 0.0
    return 0.1 * (config.variant == "lora") + weight / 7 + config.learning_rate


def run(study: StudyConfig, journal: Path, count: int | None = None) -> list[TrialConfig]:
    search = open_searches(study, journal, {})["perpeft"]
    configs: list[TrialConfig] = []
    while search.left and (count is None or len(configs) < count):
        trial_id = str(len(configs))
        config = search.ask(trial_id).config
        configs.append(config)
        search.report(trial_id, 4, score(config))
        search.tell(trial_id, "COMPLETE", score(config))
    return configs


def journal_of(journal: Path, study: StudyConfig) -> optuna.Study:
    name = optuna_study_name(study, "perpeft")
    return optuna.load_study(study_name=name, storage=open_journal(journal))


def test_the_same_seed_gives_the_same_trials_and_another_seed_others(tmp_path: Path) -> None:
    first = run(STUDY, tmp_path / "a")
    assert run(STUDY, tmp_path / "b") == first
    other = replace(STUDY, search=replace(STUDY.search, seed=1))
    assert run(other, tmp_path / "c") != first


def test_the_first_values_of_each_variant_are_tried_first(tmp_path: Path) -> None:
    configs = run(STUDY, tmp_path / "journal", 3)
    assert [config.variant for config in configs] == ["lora", "ia3", "iisan"]
    for config in configs:
        assert config.learning_rate == 1e-3
        assert config.groups == STUDY.search.groups[0]
        assert config.conditioning_weight == STUDY.search.conditioning_weights[0]


def test_variants_take_turns(tmp_path: Path) -> None:
    configs = run(STUDY, tmp_path / "journal", 9)
    assert [config.variant for config in configs] == ["lora", "ia3", "iisan"] * 3


def test_a_small_space_is_tried_whole_and_no_setting_twice(tmp_path: Path) -> None:
    small = SearchSettings(
        trials=100, ranks=(2, 4), groups=(4,), conditioning_weights=(0.5, 1), learning_rates=(0.01,)
    )
    study = replace(STUDY, search=small)
    configs = run(study, tmp_path / "journal")
    assert len(configs) == 2 * 2 + 2 + 2
    assert len({config.config_hash for config in configs}) == len(configs)
    states = [trial.state for trial in journal_of(tmp_path / "journal", study).trials]
    assert states.count(TrialState.COMPLETE) == len(configs)


def test_learning_rates_are_drawn_from_a_range(tmp_path: Path) -> None:
    search = replace(STUDY.search, learning_rate=(3e-4, 1e-2), variants=("ia3",), trials=12)
    study = replace(STUDY, search=search)
    rates = [config.learning_rate for config in run(study, tmp_path / "journal")]
    assert rates[0] == pytest.approx((3e-4 * 1e-2) ** 0.5)
    assert len(set(rates)) == 12
    assert all(3e-4 <= rate <= 1e-2 for rate in rates)


def test_tpe_acts_within_the_default_study(tmp_path: Path) -> None:
    """After the first trials, suggestions follow the scores: with other scores they differ."""
    assert StudyConfig().search.trials > START

    def tried(sign: int, folder: str) -> list[TrialConfig]:
        (tmp_path / folder).mkdir()
        search = open_searches(STUDY, tmp_path / folder / "journal", {})["perpeft"]
        configs = []
        for index in range(18):
            configs.append(search.ask(str(index)).config)
            search.tell(str(index), "COMPLETE", sign * score(configs[-1]))
        return configs

    up, down = tried(1, "up"), tried(-1, "down")
    assert up[:3] == down[:3]
    assert up != down


def test_the_search_maximises(tmp_path: Path) -> None:
    configs = run(STUDY, tmp_path / "journal")
    best = max(configs, key=score)
    found = journal_of(tmp_path / "journal", STUDY)
    assert [direction.name for direction in found.directions] == ["MAXIMIZE"]
    assert found.best_trial.user_attrs["trial_id"].endswith(best.config_hash[:8])
    assert found.metric_names == ["validation NDCG@20"]
    late = sum(score(config) for config in configs[-6:])
    assert late > sum(score(config) for config in configs[:6])


@pytest.mark.filterwarnings("error::DeprecationWarning")
def test_states_are_complete_pruned_fail_and_running(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    search = open_searches(STUDY, journal, {})["perpeft"]
    for trial_id in ("complete", "pruned", "failed", "lost"):
        search.ask(trial_id)
    search.report("complete", 4, 0.2)
    search.tell("complete", "COMPLETE", 0.3)
    search.report("pruned", 3, 0.1)
    search.report("pruned", 4, 0.2)
    search.tell("pruned", "PRUNED")
    search.tell("failed", "FAIL")
    trials = journal_of(journal, STUDY).trials
    states = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING]
    assert [trial.state for trial in trials] == states
    assert [trial.value for trial in trials[:2]] == [0.3, 0.2]
    assert trials[1].intermediate_values == {3: 0.1, 4: 0.2}


def stops(study: StudyConfig, journal: Path, *trials: dict[int, float]) -> list[bool]:
    """Whether each of the trials, which report scores by epoch and run at once, is stopped."""
    search = open_searches(study, journal, {})["perpeft"]
    stopped = []
    for number, reports in enumerate(trials):
        search.ask(str(number))
        stopped.append(any(search.report(str(number), *each) for each in reports.items()))
    return stopped


ONE_VARIANT = replace(STUDY, search=replace(STUDY.search, variants=("ia3",), grace_epochs=2))


def test_a_trial_below_the_median_of_those_at_its_rung_is_stopped(tmp_path: Path) -> None:
    trials = ({4: 0.2}, {4: 0.1}, {4: 0.16}, {4: 0.14})
    assert stops(ONE_VARIANT, tmp_path / "journal", *trials) == [False, True, False, True]


def test_only_the_rungs_before_the_last_epoch_stop_a_trial(tmp_path: Path) -> None:
    study = replace(ONE_VARIANT, train=TrainSettings(epochs=2, personal_epochs=4))
    trials = ({4: 0.2, 6: 0.3}, {2: 0.1, 3: 0.1}, {4: 0.2, 5: 0.1, 6: 0.1})
    assert stops(study, tmp_path / "journal", *trials) == [False, False, False]


def test_a_validation_after_a_rung_stands_for_it(tmp_path: Path) -> None:
    assert stops(ONE_VARIANT, tmp_path / "journal", {5: 0.2}, {5: 0.1}) == [False, True]


def test_a_variant_is_stopped_by_itself_alone(tmp_path: Path) -> None:
    study = replace(STUDY, search=replace(STUDY.search, grace_epochs=2))
    trials = ({4: 0.3}, {4: 0.2}, {4: 0.1}, {4: 0.15})  # lora, ia3, iisan, lora
    assert stops(study, tmp_path / "journal", *trials) == [False, False, False, True]


def test_without_asha_nothing_is_stopped(tmp_path: Path) -> None:
    study = replace(ONE_VARIANT, search=replace(ONE_VARIANT.search, asha=False))
    assert stops(study, tmp_path / "journal", {4: 0.2}, {4: 0.1}) == [False, False]
