"""The verdict on rows and ranks made by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from perpeft_ray.config import PeftSettings, SearchSettings, StudyConfig
from perpeft_ray.report.statistics import compare_all, user_values
from perpeft_ray.report.verdict import Verdict, verdict
from tests.records import frames_of, with_ranks

USERS = 600
STUDY = StudyConfig(
    methods=("popularity", "without_mm", "frozen_mm", "global", "perpeft"),
    parallel_workers=0,
    peft=PeftSettings(variant="lora"),
    search=SearchSettings(learning_rates=(1e-3, 1e-2, 1e-1)),
)
Judge = Callable[..., Verdict]


def ranks(hits: float, seed: int) -> np.ndarray:
    """Rank 0 for this share of the users, in the same order for all methods, and 40 for the rest.

    A twentieth of the users is changed at random.
    """
    rng = np.random.default_rng(seed)
    found = np.where(np.arange(USERS) < hits * USERS, 0, 40)
    changed = rng.random(USERS) < 0.05
    return np.where(changed, 40 - found, found)


@pytest.fixture
def judge(record) -> Judge:
    """The verdict where each method has these shares of users with rank 0: a number, or one per
    seed; `valid` of a method is its validation NDCG@20 where it is not the test's."""

    def make(
        study: StudyConfig = STUDY,
        *,
        variant: str = "lora",
        valid: dict[str, float] | None = None,
        more: tuple = (),
        **hits: float | tuple[float, ...],
    ) -> Verdict:
        records = list(more)
        for number, (method, shares) in enumerate(hits.items()):
            own = variant if method in ("global", "perpeft", "random_grouping") else None
            for seed, share in enumerate(shares if isinstance(shares, tuple) else (shares,)):
                made = record(method, own, seed=seed, study=study, minute=number)
                chosen = (valid or {}).get(method)
                records.append(with_ranks(made, ranks(share, 10 * number + seed), chosen))
        trials, users = frames_of(records)
        return verdict(study, trials, compare_all(user_values(trials, users)))

    return make


def test_a_win_has_its_effect_test_and_sample(judge: Judge) -> None:
    found = judge(without_mm=0.1, frozen_mm=0.2, **{"global": 0.25}, perpeft=0.5)
    (sentence,) = found.sentences
    assert sentence.startswith("LoRA: PerPEFT beats one global module by ")
    assert "(p < 0.001, 600 users, 1 seed), and the frozen encoder by " in sentence
    assert (found.use, found.decided) == (("perpeft", "lora"), True)
    assert "perpeft export 'my results/x$' my_model" in found.lines("my results/x$")[1]
    assert found.lines("results/x")[1] == (
        "Use `perpeft` with LoRA: perpeft export results/x my_model"
    )


def test_the_printed_effect_is_that_of_the_means(record) -> None:
    # Half and a quarter of the users, without noise: twice as many, +100 %.
    half, quarter = np.arange(USERS) % 2 * 40, np.where(np.arange(USERS) % 4 == 1, 0, 40)
    records = [
        with_ranks(record("perpeft", "lora", study=STUDY), half),
        with_ranks(record("global", "lora", study=STUDY), quarter),
    ]
    trials, users = frames_of(records)
    found = verdict(STUDY, trials, compare_all(user_values(trials, users)))
    assert "by 100 % [" in found.sentences[0]


def test_a_loss_is_as_plain_and_names_the_better_method(judge: Judge) -> None:
    found = judge(frozen_mm=0.2, **{"global": 0.5}, perpeft=0.3)
    (sentence,) = found.sentences
    assert sentence.startswith("LoRA: one global module is better than PerPEFT by ")
    assert "; PerPEFT beats the frozen encoder by" in sentence
    assert (found.use, found.decided) == (("global", "lora"), True)
    assert found.lines("x")[1].endswith("perpeft export x my_model --method global")


def test_a_tie_says_what_would_decide_it(judge: Judge) -> None:
    found = judge(**{"global": 0.30}, perpeft=0.30)
    (sentence,) = found.sentences
    assert " over global, not significant (p = " in sentence
    assert " users or at least " in sentence
    assert sentence.endswith("would show it.")
    assert not found.decided
    assert found.lines("x")[1].startswith(
        "Not decided; best in validation is `perpeft` with LoRA: "
    )


def test_validation_chooses_between_what_test_does_not_tell_apart(judge: Judge) -> None:
    found = judge(**{"global": 0.30}, perpeft=0.30, valid={"global": 0.9, "perpeft": 0.1})
    assert (found.use, found.decided) == (("global", "lora"), False)


def test_equal_methods_cannot_be_told_apart(record) -> None:
    same = ranks(0.3, 0)
    records = [with_ranks(record(m, "lora", study=STUDY), same) for m in ("perpeft", "global")]
    trials, users = frames_of(records)
    found = verdict(STUDY, trials, compare_all(user_values(trials, users)))
    assert "LoRA: +0.0 % [0.0, 0.0] over global" in found.sentences[0]
    assert "no study could show so small a difference" in found.sentences[0]


@pytest.mark.parametrize(
    ("method", "advice", "what"),
    [
        ("without_mm", "do not use content here", "--method without_mm"),
        ("popularity", "counting is enough here", "nothing to export"),
    ],
)
def test_a_simple_baseline_that_wins_is_named(
    judge: Judge, method: str, advice: str, what: str
) -> None:
    found = judge(frozen_mm=0.2, **{"global": 0.2}, perpeft=0.3, **{method: 0.5})
    assert found.sentences[-1].startswith(f"`{method}` is better than PerPEFT (LoRA) by ")
    assert found.sentences[-1].endswith(f"], p < 0.001: {advice}.")
    assert (found.use, found.decided) == ((method, None), True)
    assert what in found.lines("x")[len(found.sentences)]


def test_many_seeds_are_counted_and_estimated(judge: Judge) -> None:
    study = replace(STUDY, seeds=(0, 1, 2))
    found = judge(study, **{"global": (0.30, 0.31, 0.29)}, perpeft=(0.31, 0.32, 0.30))
    assert "600 users, 3 seeds)" in found.sentences[0]
    assert "at least" not in found.sentences[0]


def test_failed_trials_are_the_reason_for_no_comparison(judge: Judge, record) -> None:
    failed = record("perpeft", "lora", status="FAIL", study=STUDY)
    found = judge(**{"global": 0.3}, without_mm=0.2, more=(failed,))
    assert found.sentences == ("LoRA: not compared, no trial of `perpeft` is complete (1 failed).",)
    assert any(note.endswith("compared trials are complete, 1 failed") for note in found.notes)
    assert (found.use, found.decided) == (("global", "lora"), False)


def test_a_missing_variant_has_its_line_after_the_best(judge: Judge) -> None:
    study = replace(STUDY, peft=PeftSettings(), search=SearchSettings(variants=("lora", "ia3")))
    found = judge(study, variant="ia3", **{"global": 0.2}, perpeft=0.5)
    assert found.sentences[0].startswith("(IA)³: PerPEFT beats")
    assert found.sentences[1] == "LoRA: not compared, no trial of `perpeft` is complete."


def test_seeds_that_do_not_meet_are_not_compared(record) -> None:
    records = [
        with_ranks(record("perpeft", "lora", seed=0, study=STUDY), ranks(0.3, 0)),
        with_ranks(record("global", "lora", seed=1, study=STUDY), ranks(0.3, 1)),
    ]
    trials, users = frames_of(records)
    found = verdict(STUDY, trials, compare_all(user_values(trials, users)))
    assert found.sentences == (
        "LoRA: not compared, `perpeft` and `global` have no seed in common.",
    )


def test_a_global_module_that_finds_nothing_has_no_effect_in_percent(record) -> None:
    records = [
        with_ranks(record("perpeft", "lora", study=STUDY), ranks(0.3, 0)),
        with_ranks(record("global", "lora", study=STUDY), np.full(USERS, 40)),
    ]
    trials, users = frames_of(records)
    found = verdict(STUDY, trials, compare_all(user_values(trials, users)))
    assert "NDCG@20 0" in found.sentences[0]
    assert "nan" not in " ".join(found.lines("x"))


def test_users_without_a_rank_and_null_validation_count_for_nothing(record) -> None:
    unknown = np.where(np.arange(USERS) < 100, -1, ranks(0.3, 0))
    records = [
        with_ranks(record("perpeft", "lora", study=STUDY), unknown),
        with_ranks(record("global", "lora", study=STUDY), ranks(0.3, 1)),
    ]
    trials, users = frames_of(records)
    trials.loc[trials.method == "global", "valid_ndcg_at_20"] = np.nan
    found = verdict(STUDY, trials, compare_all(user_values(trials, users)))
    assert "500 users" in found.sentences[0]
    assert found.use == ("perpeft", "lora")


def test_a_study_without_trials_has_no_verdict(record) -> None:
    trials, users = frames_of([record("global", "lora", study=STUDY)])
    found = verdict(STUDY, trials[:0], compare_all(user_values(trials[:0], users)))
    assert found.use is None
    assert found.lines("x")[0] == "LoRA: not compared, no trial of `perpeft` is complete."


def test_a_study_without_perpeft_names_the_best_in_validation(judge: Judge) -> None:
    study = replace(STUDY, methods=("without_mm", "global"))
    found = judge(study, without_mm=0.2, **{"global": 0.5})
    assert (found.sentences, found.use) == ((), ("global", "lora"))


def test_the_other_training_mode_has_no_part(judge: Judge, record) -> None:
    parallel = with_ranks(record("perpeft", "lora", mode="parallel", study=STUDY), ranks(0.9, 5))
    found = judge(**{"global": 0.5}, perpeft=0.2, more=(parallel,))
    assert found.use == ("global", "lora")


def test_a_learning_rate_at_the_edge_of_its_choices_is_noted(judge: Judge) -> None:
    study = replace(STUDY, search=SearchSettings(learning_rates=(1e-3, 1e-2)))
    found = judge(study, **{"global": 0.2}, perpeft=0.5)
    assert (
        "best learning rate the highest (0.01) for global LoRA, perpeft LoRA: search"
        in " ".join(found.notes)
    )
    inside = judge(**{"global": 0.2}, perpeft=0.5)  # 0.01 among 0.001 to 0.1
    assert "learning rate" not in " ".join(inside.notes)


def test_an_epoch_that_is_the_last_and_few_search_trials_are_noted(judge: Judge, record) -> None:
    rising = with_ranks(record("frozen_mm", None, study=STUDY, still_improving=True), ranks(0.1, 3))
    searched = record("perpeft", "lora", phase="search", study=STUDY)
    found = judge(**{"global": 0.2}, perpeft=0.5, more=(rising, searched))
    notes = " ".join(found.notes)
    assert "still improving at the last epoch: frozen_mm: train longer" in notes
    assert "fewer than 5 search trials for LoRA: " in notes
