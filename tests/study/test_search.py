"""The search without Ray: what is tried, in which order, what is stopped, and how it resumes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from perpeft_ray.config import LossSettings, SearchSettings, StudyConfig, TrainSettings, TrialConfig
from perpeft_ray.store.record import Searched
from perpeft_ray.study.plan import TrialSpec, all_settings
from perpeft_ray.study.search import (
    START,
    Search,
    open_searches,
    setting_importances,
    suggest_setting,
)
from tests.study.fakes import journal_of

STUDY = StudyConfig(
    train=TrainSettings(epochs=2, personal_epochs=4),
    search=SearchSettings(trials=18, learning_rates=(1e-3, 3e-3, 1e-2)),
)
IA3 = replace(STUDY, search=replace(STUDY.search, variants=("ia3",), grace_epochs=2))


def score(config: TrialConfig) -> float:
    weight = config.conditioning_weight or 0.0
    return round(0.1 * (config.variant == "lora") + weight / 7 + config.learning_rate, 4)


class Runs:
    """Runs of a study's search, and the rows that its trials have written."""

    def __init__(self, folder: Path, study: StudyConfig = STUDY) -> None:
        self.folder, self.study = folder, study
        self.rows: dict[str, Searched] = {}
        folder.mkdir(exist_ok=True)

    def open(self) -> Search:
        return open_searches(self.study, self.folder / "optuna.journal", self.rows)["perpeft"]

    def resume(self, count: int, score: Callable[[TrialConfig], float] = score) -> Search:
        """As `run_ablation` does; finishes trials until there are `count` rows or none is left."""
        search = self.open()
        while search.left and len(self.rows) < count:
            spec = search.ask("running")
            self.write(spec)
            search.tell("running", "COMPLETE", score(spec.config))
        return search

    def write(self, spec: TrialSpec) -> None:
        key = spec.config.config_hash
        self.rows[key] = Searched(spec.config, "COMPLETE", score(spec.config), 7, [])

    @property
    def configs(self) -> list[TrialConfig]:
        return [row.config for row in self.rows.values()]

    @property
    def trials(self) -> list[optuna.trial.FrozenTrial]:
        return journal_of(self.folder).trials

    def states(self) -> list[TrialState]:
        return [trial.state for trial in self.trials]


def tried(
    folder: Path, study: StudyConfig, count: int = 100, score: Callable[..., float] = score
) -> list[TrialConfig]:
    runs = Runs(folder, study)
    runs.resume(count, score)
    return runs.configs


def test_the_same_seed_gives_the_same_trials_and_another_seed_others(tmp_path: Path) -> None:
    first = tried(tmp_path / "a", STUDY)
    assert tried(tmp_path / "b", STUDY) == first
    assert tried(tmp_path / "c", replace(STUDY, search=replace(STUDY.search, seed=1))) != first


def test_variants_take_turns_and_begin_with_their_first_values(tmp_path: Path) -> None:
    configs = tried(tmp_path, STUDY, 9)
    assert [config.variant for config in configs] == ["lora", "ia3", "iisan"] * 3
    for config in configs[:3]:
        assert config.learning_rate == 1e-3
        assert config.groups == STUDY.search.groups[0]
        assert config.conditioning_weight == STUDY.search.conditioning_weights[0]


def test_a_small_space_is_tried_whole_and_no_setting_twice(tmp_path: Path) -> None:
    small = SearchSettings(
        trials=100, ranks=(2, 4), groups=(4,), conditioning_weights=(0.5, 1), learning_rates=(0.01,)
    )
    runs = Runs(tmp_path, replace(STUDY, search=small))
    runs.resume(100)
    assert len(runs.rows) == 2 * 2 + 2 + 2
    assert runs.states().count(TrialState.COMPLETE) == len(runs.rows)


def test_learning_rates_are_drawn_from_a_range(tmp_path: Path) -> None:
    search = replace(STUDY.search, learning_rate=(3e-4, 1e-2), variants=("ia3",), trials=12)
    rates = [config.learning_rate for config in tried(tmp_path, replace(STUDY, search=search))]
    assert rates[0] == pytest.approx((3e-4 * 1e-2) ** 0.5)
    assert len(set(rates)) == 12
    assert all(3e-4 <= rate <= 1e-2 for rate in rates)


def test_suggestions_follow_the_scores_within_the_default_study(tmp_path: Path) -> None:
    assert StudyConfig().search.trials > START
    up = tried(tmp_path / "up", STUDY)
    down = tried(tmp_path / "down", STUDY, score=lambda config: -score(config))
    assert up[:3] == down[:3]
    assert up != down
    assert sum(map(score, up[-6:])) > sum(map(score, up[:6]))


def test_the_journal_has_the_objective_and_the_best_trial(tmp_path: Path) -> None:
    best = max(tried(tmp_path, STUDY), key=score)
    found = journal_of(tmp_path)
    assert [direction.name for direction in found.directions] == ["MAXIMIZE"]
    assert found.best_trial.user_attrs["trial_id"].endswith(best.config_hash[:8])
    assert found.metric_names == ["validation NDCG@20"]


@pytest.mark.filterwarnings("error::DeprecationWarning")
def test_the_journal_has_how_each_trial_ended(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    search = runs.open()
    for trial_id in ("complete", "pruned", "failed", "lost"):
        search.ask(trial_id)
    search.report("complete", 4, 0.2)
    search.tell("complete", "COMPLETE", 0.3)
    search.report("pruned", 3, 0.1)
    search.report("pruned", 4, 0.2)
    search.tell("pruned", "PRUNED")
    search.tell("failed", "FAIL")
    states = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING]
    assert runs.states() == states
    assert [trial.value for trial in runs.trials[:2]] == [0.3, 0.2]
    assert runs.trials[1].intermediate_values == {3: 0.1, 4: 0.2}


@pytest.mark.parametrize(
    ("study", "trials", "stopped"),
    [
        # Below the median of the others at its rung.
        (IA3, ({4: 0.2}, {4: 0.1}, {4: 0.16}, {4: 0.14}), [False, True, False, True]),
        # Only at rungs before the last epoch.
        (IA3, ({4: 0.2, 6: 0.3}, {2: 0.1, 3: 0.1}, {4: 0.2, 5: 0.1, 6: 0.1}), [False] * 3),
        # A validation after a rung stands for it.
        (IA3, ({5: 0.2}, {5: 0.1}), [False, True]),
        # lora, ia3, iisan, lora: each variant by itself.
        (
            replace(STUDY, search=replace(STUDY.search, grace_epochs=2)),
            ({4: 0.3}, {4: 0.2}, {4: 0.1}, {4: 0.15}),
            [False, False, False, True],
        ),
        (replace(IA3, search=replace(IA3.search, asha=False)), ({4: 0.2}, {4: 0.1}), [False] * 2),
    ],
)
def test_which_trials_are_stopped_early(
    tmp_path: Path, study: StudyConfig, trials: tuple[dict[int, float], ...], stopped: list[bool]
) -> None:
    """They run at once; each reports its scores by epoch."""
    search = Runs(tmp_path, study).open()
    found = []
    for number, reports in enumerate(trials):
        search.ask(str(number))
        found.append(any(search.report(str(number), *each) for each in reports.items()))
    assert found == stopped


def test_halving_remembers_the_trials_of_earlier_runs(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    search = runs.open()
    lora = search.ask("first")
    assert not search.report("first", 2 + STUDY.search.grace_epochs, 0.2)
    runs.write(lora)
    search = runs.resume(3)
    assert search.ask("next").config.variant == "lora"
    assert search.report("next", 2 + STUDY.search.grace_epochs, 0.1)


@pytest.mark.parametrize("kills", [(12,), (2, 3, 11)])
@pytest.mark.parametrize("when", ["training", "row written", "two training", "suggesting"])
def test_a_killed_search_ends_with_as_many_different_trials(
    tmp_path: Path, kills: tuple[int, ...], when: str
) -> None:
    runs = Runs(tmp_path)
    for kill in kills:
        search = runs.resume(kill)
        if when == "suggesting":
            journal = journal_of(tmp_path)
            journal.enqueue_trial({"variant": "lora"})
            journal.ask().suggest_categorical("groups", STUDY.search.groups)
            journal.enqueue_trial({"variant": "ia3"})
            continue
        spec = search.ask("lost")
        if when == "row written":
            runs.write(spec)
        if when == "two training":
            search.ask("also lost")
    runs.resume(100)
    assert runs.states().count(TrialState.COMPLETE) == len(runs.rows) == STUDY.search.trials
    assert {TrialState.RUNNING, TrialState.WAITING}.isdisjoint(runs.states())


def test_a_resumed_search_tries_what_the_unbroken_one_does(tmp_path: Path) -> None:
    """Stopped between two trials; what it suggests depends on the journal alone."""
    unbroken, stopped = Runs(tmp_path / "a"), Runs(tmp_path / "b")
    unbroken.resume(100)
    for count in (4, 11, 100):
        stopped.resume(count)
    assert stopped.configs == unbroken.configs


def test_interrupted_trials_come_first_also_after_two_kills(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    search = runs.resume(3)
    first, second = search.ask("a"), search.ask("b")
    assert runs.resume(3).ask("c") == first  # killed again, with only the first in progress
    once_more = runs.resume(3)
    assert [once_more.ask("d"), once_more.ask("e")] == [first, second]


def test_rows_correct_the_journal(tmp_path: Path) -> None:
    """A process can be killed between a trial's row and its end in the journal."""
    runs = Runs(tmp_path)
    search = runs.open()
    complete, pruned, lost = (search.ask(name) for name in "abc")
    runs.write(complete)
    runs.rows[pruned.config.config_hash] = Searched(pruned.config, "PRUNED", None, None, [(4, 0.1)])
    for _ in range(2):  # the second time there is nothing to do
        search = runs.open()
        assert runs.states() == [TrialState.COMPLETE, TrialState.PRUNED]
    assert [trial.value for trial in runs.trials] == [score(complete.config), 0.1]
    assert search.ask("next") == lost


def test_a_line_that_a_full_disk_cut_short_does_not_spoil_the_journal(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    lost = runs.open().ask("a")
    with (tmp_path / "optuna.journal").open("ab") as journal:
        journal.write(b'{"op_code":4,"worker')
    for _ in range(2):
        assert runs.open().ask("a") == lost


def test_rank_is_suggested_only_to_variants_that_have_one() -> None:
    study = StudyConfig()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    trials = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(60):
        setting = suggest_setting(study, "perpeft", trials.ask())
        assert ("rank" in setting) == (setting["variant"] == "lora")
        assert setting in (all_settings(study, "perpeft") or [])


def test_given_values_leave_the_search() -> None:
    study = replace(StudyConfig(), loss=LossSettings(1.0), train=TrainSettings(lr=0.02))
    study = replace(study, peft=replace(study.peft, variant="lora", rank=4))
    trial = optuna.create_study().ask()
    setting = suggest_setting(study, "perpeft", trial)
    assert set(trial.params) == {"groups"}
    names = ("variant", "rank", "conditioning_weight", "learning_rate")
    assert [setting[name] for name in names] == ["lora", 4, 1.0, 0.02]


def test_the_setting_that_decides_the_score_is_the_most_important() -> None:
    settings = [
        {"variant": variant, "groups": groups, "learning_rate": 1e-2}
        | ({"rank": rank} if variant == "lora" else {})
        for variant, rank, groups in product(("lora", "ia3"), (2, 4), (4, 6, 8))
    ]
    importances = setting_importances(settings, [0.1 + 0.01 * s["groups"] for s in settings])
    assert next(iter(importances)) == "groups"
    assert set(importances) == {"variant", "rank", "groups"}
    assert importances["groups"] > 0.95
    assert sum(importances.values()) == pytest.approx(1.0)


def test_nothing_to_explain_is_no_importance() -> None:
    setting = {"variant": "ia3", "groups": 4}
    assert setting_importances([setting], [0.1]) == {}
    assert setting_importances([setting, {**setting, "groups": 6}], [0.1, 0.1]) == {}
