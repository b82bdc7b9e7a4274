"""The verdict on rows and ranks made by hand."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from perpeft_ray.config import PeftSettings, SearchSettings, StudyConfig
from perpeft_ray.report.statistics import compare_all, user_values
from perpeft_ray.report.verdict import Verdict, verdict
from perpeft_ray.store.record import TrialRecord
from tests.records import Record, frames_of, with_ranks

USERS = 600
STUDY = StudyConfig(
    methods=("popularity", "without_mm", "frozen_mm", "global", "perpeft"),
    peft=PeftSettings(variant="lora"),
    search=SearchSettings(learning_rates=(1e-3, 1e-2, 1e-1)),
)
Hits = float | np.ndarray | list[int] | tuple[float, ...]
Judge = Callable[..., Verdict]


def ranks(hits: float, seed: int) -> np.ndarray:
    """Rank 0 for this share of the users, in the same order for all methods, and 40 for the rest.

    A twentieth of the users is changed at random.
    """
    rng = np.random.default_rng(seed)
    found = np.where(np.arange(USERS) < hits * USERS, 0, 40)
    changed = rng.random(USERS) < 0.05
    return np.where(changed, 40 - found, found)


def judged(study: StudyConfig, records: Sequence[TrialRecord]) -> Verdict:
    trials, users = frames_of(records)
    return verdict(study, trials, compare_all(user_values(trials, users)))


@pytest.fixture
def judge(record: Record) -> Judge:
    """The verdict on methods with these ranks, or shares of users with rank 0 (several: by seed).

    `valid`: a method's validation NDCG@20 if it is not the test's; `more`: further trials.
    """

    def make(
        methods: Mapping[str, Hits],
        study: StudyConfig = STUDY,
        *,
        variant: str = "lora",
        valid: Mapping[str, float] | None = None,
        more: Sequence[TrialRecord] = (),
    ) -> Verdict:
        records = list(more)
        for number, (method, given) in enumerate(methods.items()):
            own = variant if method in ("global", "perpeft") else None
            for seed, hits in enumerate(given if isinstance(given, tuple) else (given,)):
                made = record(method, own, seed=seed, study=study, minute=number)
                values = (
                    hits if isinstance(hits, np.ndarray | list) else ranks(hits, 10 * number + seed)
                )
                records.append(with_ranks(made, values, (valid or {}).get(method)))
        return judged(study, records)

    return make


HALF, QUARTER = np.arange(USERS) % 2 * 40, np.where(np.arange(USERS) % 4 == 1, 0, 40)
UNKNOWN = np.where(np.arange(USERS) < 100, -1, ranks(0.3, 0))


@pytest.mark.parametrize(
    ("methods", "sentence", "use", "decided"),
    [
        pytest.param(
            {"without_mm": 0.1, "frozen_mm": 0.2, "global": 0.25, "perpeft": 0.5},
            r"LoRA: PerPEFT beats one global module by \d+ % \[\d+, \d+\] \(p < 0.001, 600 users, "
            r"1 seed\), and the frozen encoder by .*",
            *(("perpeft", "lora"), True),
            id="win",
        ),
        pytest.param(
            {"frozen_mm": 0.2, "global": 0.5, "perpeft": 0.3},
            "LoRA: one global module is better than PerPEFT by .*; PerPEFT beats the frozen "
            "encoder by .*",
            *(("global", "lora"), True),
            id="loss",
        ),
        pytest.param(
            {"global": 0.30, "perpeft": 0.30},
            r"LoRA: .* over global, not significant \(p = .* users or at least .* would show it\.",
            *(("perpeft", "lora"), False),
            id="tie",
        ),
        pytest.param(
            {"perpeft": HALF, "global": QUARTER},  # half and a quarter of the users: twice as many
            r"LoRA: PerPEFT beats one global module by 100 % \[.*",
            *(("perpeft", "lora"), True),
            id="effect of the means",
        ),
        pytest.param(
            {"perpeft": ranks(0.3, 0), "global": ranks(0.3, 0)},
            r"LoRA: \+0.0 % \[0.0, 0.0\] over global.*no study could show so small a difference\.",
            *(("perpeft", "lora"), False),
            id="equal",
        ),
        pytest.param(
            {"global": (0.30, 0.31, 0.29), "perpeft": (0.30, 0.31, 0.29)},
            r"LoRA: .* 600 users, 3 seeds\); about [\d,]+ users or [\d,]+ seeds would show it\.",
            *(("perpeft", "lora"), False),
            id="seeds",
        ),
        pytest.param(
            {"perpeft": 0.3, "global": np.full(USERS, 40)},
            r"LoRA: PerPEFT beats one global module by 30.17 \[\d+.\d+, \d+.\d+\] in NDCG@20 × 100 "
            r"\(p < 0.001, 600 users, 1 seed\)\.",
            *(("perpeft", "lora"), True),
            id="global module without hits",
        ),
        pytest.param(
            {"perpeft": np.full(USERS, 40), "global": QUARTER},
            r"LoRA: one global module is better than PerPEFT by 25.00 \[.*\] in NDCG@20 × 100 .*",
            *(("global", "lora"), True),
            id="PerPEFT without hits",
        ),
        pytest.param(
            {"perpeft": [0, 40, 0, 40, 40], "global": [0, 40, 2, 40, 40]},  # one gains 0.5
            r"LoRA: \+10.00 \[0.00, 30.00\] in NDCG@20 × 100 over global, not significant "
            r"\(p = 0.37, 5 users, 1 seed\); about \d+ users .*",
            *(("perpeft", "lora"), False),
            id="few users with hits",
        ),
        pytest.param(
            {"perpeft": [0, 0], "global": [2, 2]},
            r"LoRA: \+100.0 % \[100.0, 100.0\] over global, not significant in a t test "
            r"\(p = 1.00, 2 users, 1 seed\); more users would show it\.",
            *(("perpeft", "lora"), False),
            id="two equal users",
        ),
        pytest.param(
            {"perpeft": [0], "global": [2]},
            "LoRA: not compared, one user is not enough.",
            *(("perpeft", "lora"), False),
            id="one user",
        ),
        pytest.param(
            {"perpeft": UNKNOWN, "global": ranks(0.3, 1)},
            r"LoRA: .* over global, not significant \(p = .*, 500 users, 1 seed\).*",
            *(("global", "lora"), False),
            id="users without a rank",
        ),
    ],
)
def test_perpeft_against_a_global_module(
    judge: Judge, methods: Mapping[str, Hits], sentence: str, use: object, decided: bool
) -> None:
    found = judge(methods)
    assert re.fullmatch(sentence, found.sentences[0]), found.sentences[0]
    assert (found.use, found.decided) == (use, decided)
    assert not re.search("nan|inf", " ".join(found.lines("x")))


def test_an_interval_without_0_that_is_not_significant_names_the_correction(judge: Judge) -> None:
    """40 of 600 users gain and 22 lose: p is 0.02 alone, and three times that among three."""
    changed = np.arange(USERS) % 2 * 40
    changed[:80:2], changed[101:145:2] = 40, 0
    half = np.arange(USERS) % 2 * 40
    found = judge({"perpeft": half, "global": changed, "frozen_mm": changed, "popularity": half})
    assert re.match(
        r"LoRA: \+\d % \[[1-9], \d+\] over global, not significant after Holm's "
        r"correction for 3 comparisons \(p = 0.06\d, .* over frozen, not significant after Holm's "
        "correction for 3 comparisons.",
        found.sentences[0],
    ), found.sentences[0]


def test_the_line_that_says_what_to_use_is_for_a_shell(judge: Judge) -> None:
    win = judge({"frozen_mm": 0.2, "global": 0.25, "perpeft": 0.5})
    assert win.lines("my results/x$")[1] == (
        "Use `perpeft` with LoRA: perpeft export 'my results/x$' my_model"
    )
    loss = judge({"global": 0.5, "perpeft": 0.3})
    assert loss.lines("x")[1].endswith("perpeft export x my_model --method global")
    tie = judge({"global": 0.30, "perpeft": 0.30})
    undecided = "Not decided; best in validation is `perpeft` with LoRA: "
    assert tie.lines("x")[1].startswith(undecided)


@pytest.mark.parametrize(("of_global", "use"), [(0.9, "global"), (np.nan, "perpeft")])
def test_validation_chooses_between_methods_that_test_does_not_separate(
    judge: Judge, of_global: float, use: str
) -> None:
    valid = {"global": of_global, "perpeft": 0.1}
    found = judge({"global": 0.3, "perpeft": 0.3}, valid=valid)
    assert (found.use, found.decided) == ((use, "lora"), False)


@pytest.mark.parametrize(
    ("method", "advice", "what"),
    [
        ("without_mm", "do not use content here", "--method without_mm"),
        ("popularity", "counting is enough here", "no model to export"),
    ],
)
def test_a_simple_baseline_that_wins_is_named(
    judge: Judge, method: str, advice: str, what: str
) -> None:
    found = judge({"frozen_mm": 0.2, "global": 0.2, "perpeft": 0.3, method: 0.5})
    assert found.sentences[-1].startswith(f"`{method}` is better than PerPEFT (LoRA) by ")
    assert found.sentences[-1].endswith(f"], p < 0.001: {advice}.")
    assert (found.use, found.decided) == ((method, None), True)
    assert what in found.lines("x")[len(found.sentences)]


def test_failed_trials_are_the_reason_for_no_comparison(judge: Judge, record: Record) -> None:
    failed = record("perpeft", "lora", status="FAIL", study=STUDY)
    found = judge({"global": 0.3, "without_mm": 0.2}, more=[failed])
    assert found.sentences == ("LoRA: not compared, no trial of `perpeft` is complete (1 failed).",)
    assert any(note.endswith("compared trials are complete, 1 failed") for note in found.notes)
    assert (found.use, found.decided) == (("global", "lora"), False)


def test_a_missing_variant_has_its_line_after_the_best(judge: Judge) -> None:
    study = replace(STUDY, peft=PeftSettings(), search=SearchSettings(variants=("lora", "ia3")))
    found = judge({"global": 0.2, "perpeft": 0.5}, study, variant="ia3")
    assert found.sentences[0].startswith("(IA)³: PerPEFT beats")
    assert found.sentences[1] == "LoRA: not compared, no trial of `perpeft` is complete."


def test_methods_without_a_shared_seed_are_not_compared(record: Record) -> None:
    made = (record("perpeft", seed=0, study=STUDY), record("global", seed=1, study=STUDY))
    found = judged(STUDY, [with_ranks(one, ranks(0.3, 0)) for one in made])
    assert found.sentences == (
        "LoRA: not compared, `perpeft` and `global` have no seed in common.",
    )


def test_a_study_without_global_says_so(judge: Judge) -> None:
    study = replace(STUDY, methods=("without_mm", "perpeft"))
    found = judge({"without_mm": 0.2, "perpeft": 0.5}, study)
    assert found.sentences == ("LoRA: not compared, `global` is not among the study's methods.",)


@pytest.mark.parametrize(("dataset", "noted"), [("toyshop", False), ("parquet:/own", True)])
def test_the_toyshops_encoder_on_other_data_is_noted(
    judge: Judge, dataset: str, noted: bool
) -> None:
    study = replace(STUDY, dataset=dataset, encoder="toyshop-clip")
    found = judge({"global": 0.2, "perpeft": 0.5}, study)
    assert any("knows only the toyshop's drawings" in note for note in found.notes) == noted


def test_a_study_without_trials_has_no_verdict(record: Record) -> None:
    trials, users = frames_of([record("global", "lora", study=STUDY)])
    found = verdict(STUDY, trials[:0], compare_all(user_values(trials[:0], users)))
    assert found.use is None
    assert found.lines("x")[0] == "LoRA: not compared, no trial of `perpeft` is complete."


def test_a_study_without_perpeft_names_the_best_in_validation(judge: Judge) -> None:
    study = replace(STUDY, methods=("without_mm", "global"))
    found = judge({"without_mm": 0.2, "global": 0.5}, study)
    assert (found.sentences, found.use) == ((), ("global", "lora"))


@pytest.mark.parametrize(
    ("rates", "tried", "noted"),
    [
        pytest.param((1e-3, 1e-2), (1e-3, 1e-2), True, id="edge"),
        pytest.param((1e-3, 1e-2, 0.1), (1e-3, 1e-2), False, id="middle"),
        pytest.param((1e-3, 1e-2), (1e-2,), False, id="only one was tried"),
    ],
)
def test_a_learning_rate_at_the_edge_of_its_choices_is_noted(
    judge: Judge, record: Record, rates: tuple[float, ...], tried: tuple[float, ...], noted: bool
) -> None:
    study = replace(STUDY, search=SearchSettings(learning_rates=rates))
    searched = [
        record(method, phase="search", study=study, learning_rate=rate)
        for method in ("global", "perpeft")
        for rate in tried
    ]
    notes = " ".join(judge({"global": 0.2, "perpeft": 0.5}, study, more=searched).notes)
    edge = "the best learning rate was the highest (0.01) for global LoRA, perpeft LoRA: search"
    assert (edge in notes) == noted == ("learning rate" in notes)


def test_a_method_that_still_improves_is_noted(judge: Judge, record: Record) -> None:
    rising = with_ranks(record("frozen_mm", None, study=STUDY, still_improving=True), ranks(0.1, 3))
    notes = judge({"global": 0.2, "perpeft": 0.5}, more=[rising]).notes
    assert "still improving at the last epoch: frozen_mm: train longer" in notes


def test_few_search_trials_are_noted(judge: Judge, record: Record) -> None:
    searched = record("perpeft", "lora", phase="search", study=STUDY)
    notes = " ".join(judge({"global": 0.2, "perpeft": 0.5}, more=[searched]).notes)
    assert "fewer than 5 search trials for LoRA: " in notes
