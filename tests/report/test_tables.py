"""Tables of trials against numbers worked out by hand; files and what is printed of a study."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from perpeft_ray.api.study import open_study
from perpeft_ray.cli.main import perpeft
from perpeft_ray.cli.results import show_results
from perpeft_ray.config import PEFT_METHODS, PeftSettings, StudyConfig
from perpeft_ray.report import tables as tables_module
from perpeft_ray.report.summary import (
    ablation_summary,
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
from perpeft_ray.report.text import TextTable, p_text
from perpeft_ray.store.record import TrialRecord
from tests.records import Record, frames_of, with_ranks, written


def rows_of(records: Sequence[TrialRecord]) -> pd.DataFrame:
    return frames_of(records)[0]


@pytest.fixture
def half_done(record: Record) -> list[TrialRecord]:
    """Trials of a study whose ablation is half done, as a reader may find it."""
    return [
        record("without_mm", None, 0.05, seed=0),
        record("without_mm", None, 0.05, seed=1),
        record("global", "lora", 0.08, seed=0),
        record("global", "lora", 0.10, seed=1),
        record("perpeft", "lora", 0.10, seed=0),
        record("perpeft", "lora", 0.12, seed=1),
        record("global", "ia3", 0.04, seed=0),
        record("perpeft", "ia3", 0.07, seed=0, status="FAIL"),
        record("perpeft", "lora", 0.50, seed=0, phase="search"),
    ]


def test_means_and_deviations_over_seeds(half_done: list[TrialRecord]) -> None:
    summary = ablation_summary(rows_of(half_done))
    assert set(summary.metric) == {f"{m}_at_{k}" for m in ("hr", "ndcg") for k in (10, 20, 30)}
    ndcg = summary[summary.metric == "ndcg_at_20"]
    cells = zip(ndcg.method, ndcg.variant.fillna(""), ndcg.seeds, strict=True)
    assert list(cells) == [
        ("without_mm", "", 2),
        ("global", "lora", 2),
        ("global", "ia3", 1),
        ("perpeft", "lora", 2),
    ]
    assert ndcg["mean"].tolist() == pytest.approx([0.05, 0.09, 0.04, 0.11])
    # Two values that are 0.02 apart: sqrt(2 × 0.01² / (2 - 1)).
    deviations = [0, 0.014142136, np.nan, 0.014142136]
    assert ndcg["std"].tolist() == pytest.approx(deviations, nan_ok=True)


def test_of_a_seed_that_ran_again_the_later_trial_counts(record: Record) -> None:
    again = record("global", "lora", 0.3, rank=8, minute=5)
    summary = ablation_summary(rows_of([again, record("global", "lora", 0.2, rank=4, minute=1)]))
    assert summary[summary.metric == "ndcg_at_20"][["mean", "seeds"]].values.tolist() == [[0.3, 1]]


def test_expected_trials() -> None:
    # 2 without training; 2 without a variant, 4 × 3 with one.
    assert expected_trials(StudyConfig(seeds=(0, 1, 2))) == 2 + 3 * (2 + 4 * 3)
    fixed = StudyConfig(peft=PeftSettings(variant="lora"))
    assert expected_trials(fixed) == 8
    assert expected_trials(replace(fixed, methods=("without_mm", "global"))) == 2


def test_best_settings_are_by_validation_within_a_variant(record: Record) -> None:
    trials = rows_of(
        [
            record("perpeft", "iisan", 0.07, phase="search"),
            record("perpeft", "lora", 0.09, phase="search", rank=8, learning_rate=5e-3),
            record("perpeft", "lora", 0.08, phase="search", rank=2),
            record("perpeft", "lora", 0.99, phase="search", rank=4, status="PRUNED"),
            record("global", "lora", 0.20, phase="search"),
            record("perpeft", "lora", 0.90, phase="ablation"),
        ]
    )
    best = best_settings(trials)
    assert best.variant.tolist() == ["lora", "iisan"]
    assert best["rank"].fillna(0).tolist() == [8, 0]
    assert best.trials.tolist() == [2, 1]
    lora, iisan = best_settings_table(trials).printed[0].rows()
    assert [text for text, _ in lora] == ["lora", "6", "8", "0.5", "0.005", "9.00", "2"]
    assert [best for _, best in lora + iisan].count(True) == 1
    assert iisan[2] == ("–", False)


def test_each_baseline_and_variant_has_its_own_learning_rate(record: Record) -> None:
    tried = (
        ("without_mm", None, 5e-3, 0.06),
        ("without_mm", None, 1e-2, 0.05),
        ("global", "lora", 5e-3, 0.07),
        ("global", "lora", 1e-2, 0.08),
        ("global", "ia3", 5e-3, 0.04),
    )
    table = learning_rates_table(
        rows_of([record(m, v, s, phase="search", learning_rate=r) for m, v, r, s in tried])
    )
    assert table.numbers.learning_rate.tolist() == [5e-3, 1e-2, 5e-3, 1e-2, 5e-3]
    assert table.numbers.chosen.tolist() == [True, False, False, True, True]
    first = next(table.printed[0].rows())
    assert [text for text, _ in first] == ["without_mm", "–", "0.005", "6.00"]
    assert first[3] == ("6.00", True)


def test_another_searched_setting_of_a_baseline_has_its_column(record: Record) -> None:
    tried = ((4, 0.09), (8, 0.08))
    table = learning_rates_table(
        rows_of([record("global", "lora", s, phase="search", rank=r) for r, s in tried])
    )
    assert table.numbers["rank"].tolist() == [4, 8]
    assert table.numbers.chosen.tolist() == [True, False]
    assert table.printed[0].texts.iloc[0].tolist()[2:] == ["4", "0.01", "9.00"]


def test_costs_are_medians_over_seeds(half_done: list[TrialRecord]) -> None:
    numbers = costs(rows_of(half_done))
    assert numbers.method.tolist() == ["without_mm", "global", "global", "perpeft"]
    assert numbers.trials.tolist() == [2, 2, 1, 2]
    assert numbers.trainable_parameters.tolist() == [0, 60, 60, 60]
    assert numbers.stage1_seconds.tolist() == [3.5] * 4


def test_sensitivity_follows_one_setting_with_the_others_fixed(record: Record) -> None:
    tried = (
        (2, 1e-2, 0, 0.10),
        (2, 1e-2, 1, 0.12),
        (4, 1e-2, 0, 0.14),
        (8, 1e-2, 0, 0.13),
        (2, 5e-3, 0, 0.90),  # another line of ranks, with fewer values
        (4, 5e-3, 0, 0.80),
    )
    records = [record(score=s, rank=r, learning_rate=lr, seed=n) for r, lr, n, s in tried]
    trials = rows_of([*records, record("perpeft", "ia3", 0.5)])
    curve = sensitivity(trials)
    assert set(curve.parameter) == {"rank", "learning_rate"}
    ranks = curve[curve.parameter == "rank"][["value", "mean", "seeds"]].values.tolist()
    assert ranks == [[2, pytest.approx(0.11), 2], [4, 0.14, 1], [8, 0.13, 1]]
    assert sensitivity(trials[:0]).empty


def test_tables_are_written_in_all_forms(half_done: list[TrialRecord], tmp_path: Path) -> None:
    folder = written(StudyConfig(storage=str(tmp_path), seeds=(0, 1)), half_done)
    tables = write_tables(StudyResults.read(folder))
    assert list(tables) == [
        *("ablation_peft", "comparisons", "best_settings", "learning_rates"),
        *("metrics", "slices", "groups", "costs"),
    ]
    of_study = folder.path / "tables"
    assert {path.name for path in of_study.iterdir()} == {
        f"{table}{ending}" for table in tables for ending in (".parquet", ".csv", ".md", ".tex")
    }
    numbers = pd.read_parquet(of_study / "ablation_peft.parquet")
    pd.testing.assert_frame_equal(numbers.drop(columns="error"), ablation_summary(folder.trials()))
    assert len(pd.read_csv(of_study / "ablation_peft.csv")) == len(numbers)
    assert "HR@20" in (of_study / "ablation_peft.md").read_text()


def test_a_notebook_computes_no_table_that_it_does_not_show(
    half_done: list[TrialRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = written(StudyConfig(storage=str(tmp_path), seeds=(0, 1)), half_done)
    for name in ("metrics_table", "slices_table", "groups_table", "titles_of_users"):
        monkeypatch.setattr(tables_module, name, None)
    assert open_study(folder.path)._repr_markdown_().startswith("### Test NDCG@20")


def test_latex_is_escaped_and_marks_the_best() -> None:
    columns = {"method": ["x_y", "gain"], "lora": ["1.00 ± 0.10", "+5.0 %"]}
    table = TextTable("A_b", columns, "100 × λ & more.", {"lora": [True, False]})
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


def test_p_values_are_short() -> None:
    texts = [p_text(p) for p in (0.00099, 0.0451, 1.0, np.nan)]
    assert texts == ["<.001", "0.045", "1.000", "–"]


def test_every_table_fits_80_characters(record: Record, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    methods = ("without_group_negatives", "global", "perpeft")
    made = [record(method, v) for v in ("lora", "ia3", "iisan") for method in methods]
    study = StudyConfig(storage=str(tmp_path), seeds=(0, 1, 2, 3, 4))
    folder = written(study, [with_ranks(one, rng.integers(0, 60, 50)) for one in made])
    console = Console(width=80, record=True, file=io.StringIO())
    for table in study_tables(StudyResults.read(folder)).values():
        for text in table.printed:
            console.print(text.terminal())
    out = console.export_text()
    assert "without_group_negatives" in out
    assert "…" not in out


def test_a_study_prints_one_table_and_about_25_lines(
    record: Record,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    study = StudyConfig()
    rng = np.random.default_rng(0)
    made = [
        with_ranks(record(m, v, study=study, still_improving=True), rng.integers(0, 30, 60))
        for m in study.methods
        for v in (("lora", "ia3", "iisan") if m in PEFT_METHODS else (None,))
    ]
    folder = written(study, [*made, record("perpeft", "lora", phase="search", study=study)])
    show_results(open_study(folder.path))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 27
    assert sum(set(line) == {"─"} for line in lines) == 1
    assert any(re.match(r"Best setting: lora, \d groups, rank 4", line) for line in lines)
    assert lines[-1] == "Report: results/ablation_peft/report.html"
    perpeft(["tables", str(folder.path)])
    assert capsys.readouterr().out.splitlines() == lines[:-1]
    perpeft(["tables", str(folder.path), "--all"])
    every = capsys.readouterr().out
    assert "Cost of a trial" in every
    assert "Test HR@20" in every
