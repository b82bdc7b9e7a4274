"""The tables against numbers worked out by hand."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from perpeft_ray.api.study import open_study
from perpeft_ray.cli.main import perpeft
from perpeft_ray.cli.results import show_results
from perpeft_ray.config import METHODS, PEFT_METHODS, PeftSettings, StudyConfig, TrainSettings
from perpeft_ray.report.ablation_table import ablation_table
from perpeft_ray.report.statistics import compare_all, user_values
from perpeft_ray.report.summary import (
    ablation_summary,
    baseline_learning_rates,
    best_settings,
    costs,
    expected_trials,
    sensitivity,
)
from perpeft_ray.report.tables import (
    StudyResults,
    best_settings_table,
    learning_rates_table,
    study_tables,
    write_tables,
)
from perpeft_ray.report.text import Cell, TextTable
from perpeft_ray.store.folder import StudyFolder
from tests.records import frames_of, with_ranks


@pytest.fixture
def study(tmp_path: Path) -> StudyConfig:
    return StudyConfig(
        storage=str(tmp_path),
        seeds=(0, 1),
        methods=("without_mm", "global", "perpeft"),
        search=replace(StudyConfig().search, variants=("lora", "ia3")),
    )


@pytest.fixture
def folder(study: StudyConfig, record) -> StudyFolder:
    """A study whose ablation is half done, as a reader may find it."""
    folder = StudyFolder.create(study)
    for written in (
        record("without_mm", None, 0.05, seed=0),
        record("without_mm", None, 0.05, seed=1),
        record("global", "lora", 0.08, seed=0),
        record("global", "lora", 0.10, seed=1),
        record("perpeft", "lora", 0.10, seed=0),
        record("perpeft", "lora", 0.12, seed=1),
        record("perpeft", "lora", 0.115, seed=0, mode="parallel"),
        record("global", "ia3", 0.04, seed=0),
        record("perpeft", "ia3", 0.07, seed=0, status="FAIL"),
        record("perpeft", "lora", 0.50, seed=0, phase="search"),
    ):
        folder.write_trial(written)
    return folder


def test_means_and_deviations_over_seeds(folder: StudyFolder) -> None:
    summary = ablation_summary(folder.trials())
    assert list(summary.columns) == ["method", "variant", "mode", "metric", "mean", "std", "seeds"]
    ndcg = summary[summary.metric == "ndcg_at_20"].reset_index(drop=True)
    assert ndcg.method.tolist() == ["without_mm", "global", "global", "perpeft", "perpeft"]
    assert ndcg.variant.fillna("").tolist() == ["", "lora", "ia3", "lora", "lora"]
    assert ndcg["mode"].tolist() == ["sequential"] * 4 + ["parallel"]
    assert ndcg["mean"].tolist() == pytest.approx([0.05, 0.09, 0.04, 0.11, 0.115])
    # Two values that are 0.02 apart: sqrt(2 × 0.01² / (2 - 1)).
    assert ndcg["std"].tolist() == pytest.approx(
        [0, 0.014142136, float("nan"), 0.014142136, float("nan")], nan_ok=True
    )
    assert ndcg.seeds.tolist() == [2, 2, 1, 2, 1]
    hits = summary[(summary.metric == "hr_at_20") & (summary.method == "without_mm")]
    assert hits["mean"].tolist() == pytest.approx([0.10])
    assert set(summary.metric) == {f"{m}_at_{k}" for m in ("hr", "ndcg") for k in (10, 20, 30)}


def test_a_seed_that_was_run_again_counts_once_with_the_later_trial(record, tmp_path) -> None:
    folder = StudyFolder(tmp_path)
    folder.write_trial(record("global", "lora", 0.3, rank=8, minute=5))
    folder.write_trial(record("global", "lora", 0.2, rank=4, minute=1))
    summary = ablation_summary(folder.trials())
    assert summary[summary.metric == "ndcg_at_20"][["mean", "seeds"]].values.tolist() == [[0.3, 1]]


def test_printed_table_of_a_study_half_done(study: StudyConfig, record) -> None:
    # NDCG@20 of rank 0 is 1, of rank 2 is 1/2, and of rank 40 is 0.
    records = [
        with_ranks(record("without_mm", None, seed=0), [40, 0]),
        with_ranks(record("without_mm", None, seed=1), [0, 0]),
        with_ranks(record("global", "lora", seed=0), [2, 0]),
        with_ranks(record("perpeft", "lora", seed=0), [0, 0]),
        with_ranks(record("perpeft", "lora", seed=0, mode="parallel"), [2, 2]),
        record("perpeft", "ia3", status="FAIL"),
    ]
    trials, users = frames_of(records)
    ndcg, hits = ablation_table(trials, users, study, ()).printed
    # A user's value is the mean over seeds: 1/2 and 1, whose standard error is 1/4.
    title, _, header, _, *rows, _, caption = ndcg.markdown().splitlines()
    assert title == "### Test NDCG@20 × 100 on toyshop"
    assert [[cell.strip() for cell in row.strip("|").split("|")] for row in (header, *rows)] == [
        ["method", "lora", "ia3"],
        ["without_mm", "75.00 ± 25.00", "**75.00 ± 25.00**"],
        ["global", "75.00 ± 25.00", "–"],
        ["perpeft", "**100.00 ± 0.00**", "–"],
        ["perpeft (parallel)", "50.00 ± 0.00", "–"],
    ]
    assert caption == "mean ± standard error over users; seeds: 1; bold: best of the column."
    assert hits.title == "Test HR@20 × 100 on toyshop"


def test_what_is_significantly_better_than_global_is_marked(study: StudyConfig, record) -> None:
    rng = np.random.default_rng(0)
    worse, better = rng.integers(5, 60, 400), rng.integers(0, 8, 400)
    ranks = {"without_mm": better, "global": worse, "perpeft": better + 1, "frozen_mm": worse + 1}
    records = [
        with_ranks(record(m, "lora" if m in ("global", "perpeft") else None), own)
        for m, own in ranks.items()
    ]
    trials, users = frames_of(records)
    compared = compare_all(user_values(trials, users))
    ndcg, _ = ablation_table(trials, users, study, compared).printed
    marked = {row[0].text for row in ndcg.rows if row[1].text.endswith("*")}
    assert marked == {"without_mm", "perpeft"}
    assert ndcg.caption.endswith("; * better than global, p < 0.05 (Holm).")


def test_a_study_in_parallel_mode_names_the_other_mode(record) -> None:
    study = StudyConfig(
        methods=("perpeft",),
        peft=PeftSettings(variant="lora"),
        train=TrainSettings(mode="parallel"),
        workers=2,
    )
    records = [
        with_ranks(record("perpeft", "lora", mode="parallel"), [0, 0]),
        with_ranks(record("perpeft", "lora", mode="sequential"), [2, 2]),
    ]
    table = ablation_table(*frames_of(records, "parallel"), study, ()).printed[0]
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["perpeft", "100.00 ± 0.00"],
        ["perpeft (sequential)", "50.00 ± 0.00"],
    ]


def test_expected_trials() -> None:
    # 2 without training; 2 without a variant, 4 × 3 with one, the best variant's other mode.
    assert expected_trials(StudyConfig(seeds=(0, 1, 2), parallel_workers=2)) == 2 + 3 * (
        2 + 4 * 3 + 1
    )
    fixed = StudyConfig(peft=PeftSettings(variant="lora"), parallel_workers=0)
    assert expected_trials(fixed) == 8
    assert expected_trials(replace(fixed, methods=("without_mm", "global"))) == 2


def test_best_settings_are_by_validation_within_a_variant(record, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    for written in (
        record("perpeft", "iisan", 0.07, phase="search"),
        record("perpeft", "lora", 0.09, phase="search", rank=8, learning_rate=5e-3),
        record("perpeft", "lora", 0.08, phase="search", rank=2),
        record("perpeft", "lora", 0.99, phase="search", rank=4, status="PRUNED"),
        record("global", "lora", 0.20, phase="search"),
        record("perpeft", "lora", 0.90, phase="ablation"),
    ):
        folder.write_trial(written)
    best = best_settings(folder.trials())
    assert best.variant.tolist() == ["lora", "iisan"]
    assert best["rank"].fillna(0).tolist() == [8, 0]
    assert best.learning_rate.tolist() == [5e-3, 1e-2]
    assert best.trials.tolist() == [2, 1]
    table = best_settings_table(folder.trials()).printed[0]
    assert [cell.text for cell in table.rows[0]] == ["lora", "6", "8", "0.5", "0.005", "9.00", "2"]
    assert [cell.best for cell in table.rows[0]].count(True) == 1
    assert table.rows[1][2].text == "–"


def test_each_baseline_and_variant_has_its_own_learning_rate(record, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    for method, variant, rate, score in (
        ("without_mm", None, 5e-3, 0.06),
        ("without_mm", None, 1e-2, 0.05),
        ("global", "lora", 5e-3, 0.07),
        ("global", "lora", 1e-2, 0.08),
        ("global", "ia3", 5e-3, 0.04),
    ):
        folder.write_trial(record(method, variant, score, phase="search", learning_rate=rate))
    rates = baseline_learning_rates(folder.trials())
    assert rates.method.tolist() == ["without_mm"] * 2 + ["global"] * 3
    assert rates.learning_rate.tolist() == [5e-3, 1e-2, 5e-3, 1e-2, 5e-3]
    assert rates.chosen.tolist() == [True, False, False, True, True]
    table = learning_rates_table(folder.trials()).printed[0]
    assert [cell.text for cell in table.rows[0]] == ["without_mm", "–", "0.005", "6.00"]
    assert table.rows[0][3].best


def test_tables_are_written_in_all_forms(folder: StudyFolder) -> None:
    tables = write_tables(StudyResults.read(folder))
    assert list(tables) == [
        "ablation_peft",
        "comparisons",
        "best_settings",
        "learning_rates",
        "metrics",
        "slices",
        "groups",
        "costs",
    ]
    assert {path.name for path in (folder.path / "tables").iterdir()} == {
        f"{table}{ending}" for table in tables for ending in (".parquet", ".csv", ".md", ".tex")
    }
    written = pd.read_parquet(folder.path / "tables" / "ablation_peft.parquet")
    pd.testing.assert_frame_equal(written.drop(columns="error"), ablation_summary(folder.trials()))
    assert len(pd.read_csv(folder.path / "tables" / "ablation_peft.csv")) == len(written)
    assert "HR@20" in (folder.path / "tables" / "ablation_peft.md").read_text()


def test_a_study_without_trials_has_empty_tables(study: StudyConfig) -> None:
    tables = write_tables(StudyResults.read(StudyFolder.create(study)))
    printed = tables["ablation_peft"].printed[0]
    assert {cell.text for row in printed.rows for cell in row[1:]} == {"–"}
    for name in ("best_settings", "learning_rates", "costs"):
        assert tables[name].printed[0].rows == ()
    assert tables["comparisons"].printed == ()


def test_latex_escapes_and_marks_the_best() -> None:
    table = TextTable(
        title="A_b",
        header=("method", "lora"),
        rows=((Cell("x_y"), Cell("1.00 ± 0.10", best=True)), (Cell("gain"), Cell("+5.0 %"))),
        caption="100 × λ & more.",
    )
    assert table.latex() == (
        "\\begin{table}\n"
        "\\centering\n"
        "\\caption{A\\_b. 100 $\\times$ $\\lambda$ \\& more.}\n"
        "\\begin{tabular}{lr}\n"
        "\\toprule\n"
        "method & lora \\\\\n"
        "\\midrule\n"
        "x\\_y & \\textbf{1.00 $\\pm$ 0.10} \\\\\n"
        "gain & +5.0 \\% \\\\\n"
        "\\bottomrule\n"
        "\\end{tabular}\n"
        "\\end{table}\n"
    )


def test_every_table_fits_80_characters(record, tmp_path: Path) -> None:
    folder = StudyFolder.create(StudyConfig(storage=str(tmp_path), seeds=(0, 1, 2, 3, 4)))
    rng = np.random.default_rng(0)
    for variant in ("lora", "ia3", "iisan"):
        for method, mode in (
            *(("without_group_negatives", "sequential"), ("global", "sequential")),
            *(("perpeft", "sequential"), ("perpeft", "parallel")),
        ):
            made = record(method, variant, mode=mode)
            folder.write_trial(with_ranks(made, rng.integers(0, 60, 50)))
    console = Console(width=80, record=True, file=(tmp_path / "out").open("w"))
    for table in study_tables(StudyResults.read(folder)).values():
        for text in table.printed:
            console.print(text.terminal())
    out = console.export_text()
    assert "without_group_negatives" in out
    assert "…" not in out


def test_what_is_printed_is_one_table_and_about_25_lines(
    record, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = StudyConfig()
    folder = StudyFolder.create(study)
    rng = np.random.default_rng(0)
    for method in study.methods:
        for variant in ("lora", "ia3", "iisan") if method in PEFT_METHODS else (None,):
            made = record(method, variant, study=study, still_improving=True)
            folder.write_trial(with_ranks(made, rng.integers(0, 30, 300)))
    folder.write_trial(record("perpeft", "lora", phase="search", study=study))
    show_results(open_study(folder.path))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 27
    assert sum(set(line) == {"─"} for line in lines) == 1
    assert any(re.match(r"Best setting: lora, \d groups, rank 4", line) for line in lines)
    assert lines[-1] == "Report: results/ablation_peft/report.html"
    perpeft(["tables", str(folder.path)])
    again = capsys.readouterr().out.splitlines()
    assert again == lines[:-1]
    perpeft(["tables", str(folder.path), "--all"])
    every = capsys.readouterr().out
    assert "Cost of a trial" in every
    assert "Test HR@20" in every


def test_a_log_marks_what_a_terminal_shows_bold(study: StudyConfig, record) -> None:
    records = [with_ranks(record(m, "lora"), [at]) for m, at in (("global", 2), ("perpeft", 0))]
    table = ablation_table(*frames_of(records), study, ()).printed[0]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table.terminal(bold=False))
    out = console.export_text()
    assert "▸100.00" in out
    assert "▸: best of the column" in " ".join(out.split())


def test_any_method_of_the_paper_appears_in_the_papers_order(record) -> None:
    trials, users = frames_of([record(m, "lora") for m in ("random_grouping", "global")])
    others = [method for method in METHODS if method not in set(trials.method)]
    rows = [trials.iloc[[0]].assign(method=method) for method in reversed(others)]
    study = StudyConfig(methods=("global",), parallel_workers=0, peft=PeftSettings(variant="lora"))
    table = ablation_table(pd.concat([*rows, trials]), users, study, ())
    assert [row[0].text for row in table.printed[0].rows] == list(METHODS)
    assert table.numbers.method.drop_duplicates().tolist() == list(METHODS)
    assert "our reading of the paper's rows" in table.printed[0].caption


def test_costs_are_means_over_seeds(folder: StudyFolder) -> None:
    numbers = costs(folder.trials())
    assert numbers.method.tolist() == ["without_mm", "global", "global", "perpeft", "perpeft"]
    assert numbers.trials.tolist() == [2, 2, 1, 2, 1]
    assert numbers.trainable_parameters.tolist() == [0, 60, 60, 60, 60]
    assert numbers.stage1_seconds.tolist() == [3.5] * 5


def test_sensitivity_follows_one_setting_with_the_others_held(record, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    for rank, rate, seed, score in (
        (2, 1e-2, 0, 0.10),
        (2, 1e-2, 1, 0.12),
        (4, 1e-2, 0, 0.14),
        (8, 1e-2, 0, 0.13),
        (2, 5e-3, 0, 0.90),  # another line of ranks, with fewer values
        (4, 5e-3, 0, 0.80),
    ):
        folder.write_trial(
            record("perpeft", "lora", score, rank=rank, learning_rate=rate, seed=seed)
        )
    folder.write_trial(record("perpeft", "ia3", 0.5))
    curve = sensitivity(folder.trials())
    ranks = curve[curve.parameter == "rank"]
    assert ranks[["value", "mean", "seeds"]].values.tolist() == [
        [2, pytest.approx(0.11), 2],
        [4, 0.14, 1],
        [8, 0.13, 1],
    ]
    assert set(curve.parameter) == {"rank", "learning_rate"}
    assert sensitivity(folder.trials().iloc[:0]).empty
