"""The whole study under Tune with a runner that does not train."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from perpeft_ray.config import SIMPLE_METHODS
from perpeft_ray.study.ablation import run_ablation
from perpeft_ray.study.progress import Progress
from perpeft_ray.study.search.suggest import open_journal
from tests.study.conftest import rows_of

pytestmark = pytest.mark.usefixtures("ray_runtime")


def run(study: Any) -> str:
    """Run a study; what it printed."""
    out = io.StringIO()
    with Progress(out) as progress:
        run_ablation(study, progress)
    return out.getvalue()


def journal_states(study: Any) -> Counter[TrialState]:
    storage = open_journal(study.folder.path / "optuna.journal")
    [name] = [n for n in optuna.get_all_study_names(storage) if n.endswith("-perpeft")]
    loaded = optuna.load_study(study_name=name, storage=storage)
    return Counter(trial.state for trial in loaded.trials)


def test_a_study_from_search_to_ablation_and_again(
    make_study: Callable[..., Any], small_study: Callable[..., Any]
) -> None:
    study = make_study(small_study(seeds=(0, 1), parallel_workers=2))
    printed = run(study)
    rows = rows_of(study)

    searched = [row for row in rows if row["phase"] == "search" and row["method"] == "perpeft"]
    assert len(searched) == 6
    states = journal_states(study)
    assert states[TrialState.RUNNING] == states[TrialState.WAITING] == 0
    for status in ("COMPLETE", "PRUNED"):
        assert states[TrialState[status]] == sum(row["status"] == status for row in searched)
    assert states[TrialState.PRUNED] > 0
    pruned = [row for row in searched if row["status"] == "PRUNED"]
    assert list(study.checkpoints.iterdir()) == []  # nor has a stopped trial left anything
    assert all(2 + 2 <= row["epochs"] < 8 for row in pruned)  # stage 1 and grace, not the end

    # What the ablation runs is the best of the search by validation, and only it reads test.
    ablation = [row for row in rows if row["phase"] == "ablation"]
    assert None not in {row["test_ndcg_at_20"] for row in ablation}
    assert {row["test_ndcg_at_20"] for row in rows if row["phase"] == "search"} == {None}
    complete = [row for row in searched if row["status"] == "COMPLETE"]
    for variant in ("lora", "ia3", "iisan"):
        best = max(
            (r for r in complete if r["variant"] == variant), key=lambda r: r["valid_ndcg_at_20"]
        )
        run_again = [
            r
            for r in ablation
            if (r["method"], r["variant"], r["mode"]) == ("perpeft", variant, "sequential")
        ]
        assert len(run_again) == 2
        for name in ("rank", "groups", "conditioning_weight", "learning_rate"):
            assert {row[name] for row in run_again} == {best[name]}

    # Baselines had the same learning rates to choose from, and took their own best. (LoRA has ranks
    # too, and more settings than trials.)
    rates = {
        row["learning_rate"]
        for row in rows
        if row["phase"] == "search" and row["method"] == "without_mm"
    }
    assert rates == {5e-3, 1e-2}
    chosen = {
        (row["method"], row["learning_rate"]) for row in ablation if row["variant"] in (None, "ia3")
    }
    assert {("without_mm", 5e-3), ("frozen_mm", 1e-2), ("global", 5e-3)} <= chosen
    assert {("without_mm", 1e-2), ("frozen_mm", 5e-3), ("global", 1e-2)}.isdisjoint(chosen)

    # 2 without a variant and 4 with three, for two seeds, and the best in parallel mode; two more
    # are the same with every seed and have no epochs.
    assert len(ablation) == 2 * (2 + 4 * 3 + 1) + 2
    assert [r["status"] for r in ablation if r["method"] in SIMPLE_METHODS] == ["COMPLETE"] * 2
    parallel = [row for row in ablation if row["mode"] == "parallel"]
    assert [(row["method"], row["variant"], row["world_size"]) for row in parallel] == [
        ("perpeft", "lora", 2)
    ] * 2

    # The status line's counts were right, and every trial has a line.
    assert printed.count("COMPLETE") + printed.count("PRUNED") == len(rows)
    assert f"[{len(rows)}/{len(rows)}]" in printed

    # The same command again finds nothing to do.
    assert "COMPLETE" not in run(study)
    assert rows_of(study) == rows


def test_failed_trials_are_rows_and_the_study_goes_on(
    make_study: Callable[..., Any], small_study: Callable[..., Any], run_failing: Any
) -> None:
    config = small_study(methods=("global", "perpeft"))
    study = make_study(config, run=run_failing)
    printed = run(study)
    rows = rows_of(study)
    failed = [row for row in rows if row["status"] == "FAIL"]
    assert {row["variant"] for row in failed} == {"ia3", "lora"}
    assert {row["error"] for row in failed if row["variant"] == "ia3"} == {
        "ValueError: ia3 is broken"
    }
    nan = {row["error"] for row in failed if row["variant"] == "lora"}
    assert nan == {"FloatingPointError: validation NDCG@20 is nan in epoch 2"}
    assert all(row["valid_ndcg_at_20"] is None for row in failed)
    assert journal_states(study)[TrialState.RUNNING] == 0
    assert journal_states(study)[TrialState.FAIL] >= 1
    # The variant that always fails is left out and told; the others are compared.
    assert "left out: perpeft ia3 has no finished trial" in printed
    ablation = {(row["method"], row["variant"]) for row in rows if row["phase"] == "ablation"}
    assert ablation == {(m, v) for m in ("global", "perpeft") for v in ("lora", "iisan")}


def test_an_interrupted_study_does_only_what_is_missing(
    make_study: Callable[..., Any], small_study: Callable[..., Any]
) -> None:
    config = small_study(methods=("without_mm", "global", "perpeft"))
    study = make_study(config)
    run(study)
    before = {row["trial_id"]: row for row in rows_of(study)}
    searched = next(t for t, row in before.items() if row["status"] == "PRUNED")
    lost = [
        searched,
        *(t for t in before if t.startswith("search-without_mm")),
        *(t for t in before if t.startswith("ablation-global-ia3")),
    ]
    assert len(lost) == 4
    for trial_id in lost:
        (study.folder.path / "trials" / f"{trial_id}.parquet").unlink()
    run(study)
    after = {row["trial_id"]: row for row in rows_of(study)}
    assert len(after) >= len(before)
    kept = set(before) - set(lost)
    assert {t: after[t] for t in kept} == {t: before[t] for t in kept}


def test_a_trial_that_ends_early_by_patience_is_complete(
    make_study: Callable[..., Any], small_study: Callable[..., Any], capfd: pytest.CaptureFixture
) -> None:
    config = small_study(methods=("popularity", "without_mm"))
    config = replace(config, train=replace(config.train, lr=5e-3, patience=1))
    study = make_study(config)
    printed = run(study)
    rows = rows_of(study)
    assert [(row["method"], row["status"]) for row in rows] == [
        ("popularity", "COMPLETE"),
        ("without_mm", "COMPLETE"),
    ]
    assert printed.count("COMPLETE") == 2
    assert "Last result" not in capfd.readouterr().out  # Tune's own


def test_methods_without_peft_need_no_search(
    make_study: Callable[..., Any], small_study: Callable[..., Any]
) -> None:
    config = small_study(methods=("without_mm",), seeds=(0, 1))
    config = replace(config, train=replace(config.train, lr=5e-3))
    study = make_study(config)
    run(study)
    rows = rows_of(study)
    assert [(row["method"], row["phase"], row["seed"]) for row in rows] == [
        ("without_mm", "ablation", 0),
        ("without_mm", "ablation", 1),
    ]
