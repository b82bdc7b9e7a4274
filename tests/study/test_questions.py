"""What a study runs for its question, with a runner that does not train, in this process."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.trial import TrialState

from perpeft_ray.config import METHODS, SearchSettings, StudyConfig
from perpeft_ray.study.questions import (
    efficiency_configs,
    run_ablation,
    run_front,
    run_sensitivity,
)
from perpeft_ray.study.trainable import Study
from tests.study.fakes import journal_of, new_study, printed, rows_of, small_study, states
from tests.study.run_here import Ran, run_here, whole_study

NAMES = ("groups", "rank", "conditioning_weight", "learning_rate")


@pytest.fixture(scope="module", autouse=True)
def _without_ray() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("perpeft_ray.study.questions.run_tune", run_here)
        yield


@pytest.fixture(scope="module")
def ran(_without_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return Ran(whole_study(tmp_path_factory.mktemp("questions")))


def test_the_journal_knows_how_every_trial_of_the_search_ended(ran: Ran) -> None:
    statuses = Counter(row["status"] for row in ran.of("search", "perpeft"))
    assert sum(statuses.values()) == 6
    assert statuses["PRUNED"] > 0
    assert states(ran.study.folder.path) == {TrialState[s]: n for s, n in statuses.items()}


def test_pruned_trials_had_stage_one_and_grace(ran: Ran) -> None:
    pruned = [row for row in ran.rows if row["status"] == "PRUNED"]
    assert all(2 + 2 <= row["epochs"] < 8 for row in pruned)


def test_only_trials_after_the_search_read_test(ran: Ran) -> None:
    assert None not in {row["test_ndcg_at_20"] for row in ran.of("ablation")}
    assert {row["test_ndcg_at_20"] for row in ran.of("search")} == {None}


def test_the_ablation_runs_each_variants_best_by_validation(ran: Ran) -> None:
    complete = [row for row in ran.of("search", "perpeft") if row["status"] == "COMPLETE"]
    for variant in ("lora", "ia3", "iisan"):
        searched = [row for row in complete if row["variant"] == variant]
        best = max(searched, key=lambda row: row["valid_ndcg_at_20"])
        [again] = [row for row in ran.of("ablation", "perpeft") if row["variant"] == variant]
        for name in NAMES:
            assert again[name] == best[name]


def test_baselines_choose_among_the_same_learning_rates(ran: Ran) -> None:
    assert {row["learning_rate"] for row in ran.of("search", "without_mm")} == {5e-3, 1e-2}
    # LoRA has ranks too, and more settings than trials.
    chosen = {
        (row["method"], row["learning_rate"])
        for row in ran.of("ablation")
        if row["variant"] in (None, "ia3") and row["method"] in ("without_mm", "global", "perpeft")
    }
    assert chosen == {("without_mm", 5e-3), ("global", 5e-3), ("perpeft", 1e-2)}


def copy_of(ran: Ran, storage: Path) -> Study:
    """The study that has run, to be continued elsewhere."""
    shutil.copytree(ran.study.folder.path, storage / ran.study.config.study)
    return new_study(storage, ran.study.config)


def test_an_interrupted_study_does_only_what_is_missing(ran: Ran, tmp_path: Path) -> None:
    study = copy_of(ran, tmp_path)
    before = {row["trial_id"]: row for row in ran.rows}
    lost = [
        next(t for t, row in before.items() if row["status"] == "PRUNED"),
        *(t for t in before if t.startswith("search-without_mm")),
        *(t for t in before if t.startswith("ablation-global-ia3")),
    ]
    assert len(lost) == 4
    for trial_id in lost:
        (study.folder.path / "trials" / f"{trial_id}.parquet").unlink()
    printed(run_ablation, study)
    after = {row["trial_id"]: row for row in rows_of(study)}
    assert len(after) >= len(before)
    assert {t: after[t] for t in before if t not in lost} == {
        t: row for t, row in before.items() if t not in lost
    }


def test_without_a_search_seeds_run_and_patience_ends_a_trial_as_complete(tmp_path: Path) -> None:
    config = small_study(methods=("popularity", "without_mm"), seeds=(0, 1))
    config = replace(config, train=replace(config.train, lr=5e-3, patience=1))
    ran = Ran(new_study(tmp_path, config))
    assert [(row["method"], row["phase"], row["seed"], row["status"]) for row in ran.rows] == [
        ("popularity", "ablation", 0, "COMPLETE"),
        ("without_mm", "ablation", 0, "COMPLETE"),
        ("without_mm", "ablation", 1, "COMPLETE"),
    ]
    assert ran.printed.count("COMPLETE") == 3


def test_sensitivity_varies_one_setting_about_each_variants_best(ran: Ran, tmp_path: Path) -> None:
    study = copy_of(ran, tmp_path)
    printed(run_sensitivity, study)
    names = ("variant", *NAMES)
    curves = [row for row in rows_of(study) if row["phase"] == "settings"]
    assert None not in {row["test_ndcg_at_20"] for row in curves}
    expected = set()
    for row in ran.of("ablation", "perpeft"):
        best = tuple(row[name] for name in names)
        for place, name in enumerate(names[1:], start=1):
            values = study.config.values(name) if row[name] is not None else ()
            expected |= {(*best[:place], value, *best[place + 1 :]) for value in values}
    assert Counter(tuple(row[name] for name in names) for row in curves) == dict.fromkeys(
        expected, 1
    )


def test_the_front_of_a_search_for_two_objectives_reads_test(tmp_path: Path) -> None:
    config = small_study(methods=("perpeft",))
    study = new_study(tmp_path, replace(config, search=replace(config.search, pareto=True)))
    printed(run_front, study)
    rows = rows_of(study)
    # Nothing is stopped early.
    assert {row["status"] for row in rows if row["phase"] == "search"} == {"COMPLETE"}
    found = journal_of(study.folder.path)
    assert [direction.name for direction in found.directions] == ["MAXIMIZE", "MINIMIZE"]
    front = [row for row in rows if row["phase"] == "settings"]
    assert {(row["valid_ndcg_at_20"], (row["rank"] or 1) * row["groups"]) for row in front} == {
        tuple(trial.values) for trial in found.best_trials
    }
    assert None not in {row["test_ndcg_at_20"] for row in front}


def test_efficiency_has_every_cell_once_at_every_rank() -> None:
    study = StudyConfig(methods=METHODS, search=SearchSettings(ranks=(2, 8), groups=(4,)))
    cells = Counter((c.method, c.variant, c.rank) for c in efficiency_configs(study))
    assert set(cells.values()) == {1}
    assert {("perpeft", "lora", 2), ("perpeft", "lora", 8), ("perpeft", "ia3", None)} <= set(cells)
    assert ("large_global", "lora", 8 * 4) in cells
    assert ("large_global", "ia3", None) not in cells
    assert [cell for cell in cells if cell[0] == "frozen_mm"] == [("frozen_mm", None, None)]
