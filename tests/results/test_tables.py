"""The tables against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from perpeft_ray.config import METHODS, PeftSettings, StudyConfig, TrainSettings
from perpeft_ray.results.ablation_table import ablation_table, expected_trials
from perpeft_ray.results.folder import StudyFolder
from perpeft_ray.results.summary import (
    ablation_summary,
    baseline_learning_rates,
    best_settings,
    costs,
    gains_over_global,
    sensitivity,
)
from perpeft_ray.results.tables import (
    best_settings_table,
    learning_rates_table,
    study_tables,
    write_tables,
)
from perpeft_ray.results.text import Cell, TextTable


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


def test_gain_is_in_percent_of_global(folder: StudyFolder) -> None:
    gains = gains_over_global(ablation_summary(folder.trials()))
    ndcg = gains[gains.metric == "ndcg_at_20"].set_index("mode").gain
    assert ndcg["sequential"] == pytest.approx(100 * (0.11 / 0.09 - 1))
    assert ndcg["parallel"] == pytest.approx(100 * (0.115 / 0.09 - 1))
    assert len(ndcg) == 2


def test_printed_table_of_a_study_half_done(folder: StudyFolder, study: StudyConfig) -> None:
    ndcg, hits = ablation_table(folder.trials(), study).printed
    assert ndcg.markdown() == (
        "### Test NDCG@20 on toyshop\n"
        "\n"
        "| method | lora | ia3 | seeds |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| without_mm | 5.00 ± 0.00 | **5.00 ± 0.00** | 2 |\n"
        "| global | 9.00 ± 1.41 | 4.00 | 1–2 |\n"
        "| perpeft | 11.00 ± 1.41 | – | 2 |\n"
        "| perpeft (parallel) | **11.50** | – | 1 |\n"
        "| perpeft gain | +22.2 % | – |  |\n"
        "| perpeft (parallel) gain | +27.8 % | – |  |\n"
        "\n"
        "Test metrics × 100, mean ± standard deviation over seeds; the best of each column is "
        "bold. Methods without PEFT have one value, shown under every variant. Gain: over "
        "global. perpeft beats the other methods in 4 of 4 comparisons (variants × HR and NDCG at "
        "20 and 30). 8 of 12 trials are complete, 1 failed.\n"
    )
    assert hits.rows[0][1] == Cell("10.00 ± 0.00")


def test_a_study_in_parallel_mode_names_the_other_mode(record, tmp_path: Path) -> None:
    study = StudyConfig(
        methods=("perpeft",),
        peft=PeftSettings(variant="lora"),
        train=TrainSettings(mode="parallel"),
        workers=2,
    )
    folder = StudyFolder(tmp_path)
    folder.write_trial(record("perpeft", "lora", 0.1, mode="parallel"))
    folder.write_trial(record("perpeft", "lora", 0.2, mode="sequential"))
    table = ablation_table(folder.trials(), study).printed[0]
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["perpeft", "10.00", "1"],
        ["perpeft (sequential)", "20.00", "1"],
    ]
    assert table.caption.endswith("2 of 2 trials are complete.")


def test_expected_trials() -> None:
    # 2 without training; 2 without a variant, 4 × 3 with one, the best variant's other mode.
    assert expected_trials(StudyConfig(seeds=(0, 1, 2))) == 2 + 3 * (2 + 4 * 3 + 1)
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
    tables = write_tables(folder)
    assert [table.name for table in tables] == [
        "ablation_peft",
        "comparisons",
        "best_settings",
        "learning_rates",
        "costs",
    ]
    assert {path.name for path in (folder.path / "tables").iterdir()} == {
        f"{table.name}{ending}"
        for table in tables
        for ending in (".parquet", ".csv", ".md", ".tex")
    }
    written = pd.read_parquet(folder.path / "tables" / "ablation_peft.parquet")
    of_paper = ["paper_mean", "paper_std"]
    pd.testing.assert_frame_equal(written.drop(columns=of_paper), ablation_summary(folder.trials()))
    assert written[of_paper].isna().all(axis=None)
    assert len(pd.read_csv(folder.path / "tables" / "ablation_peft.csv")) == len(written)
    assert "HR@20" in (folder.path / "tables" / "ablation_peft.md").read_text()


def test_a_study_without_trials_has_empty_tables(study: StudyConfig) -> None:
    folder = StudyFolder.create(study)
    ablation, comparisons, settings, rates, costs = write_tables(folder)
    assert {cell.text for row in ablation.printed[0].rows for cell in row[1:]} == {"–", "0", ""}
    assert ablation.printed[0].caption.endswith("0 of 12 trials are complete.")
    for table in (settings, rates, costs):
        assert table.printed[0].rows == ()
    assert comparisons.printed == ()


def test_latex_escapes_and_marks_the_best() -> None:
    table = TextTable(
        title="A_b",
        header=("method", "lora"),
        rows=((Cell("x_y"), Cell("1.00 ± 0.10", best=True)), (Cell("gain"), Cell("+5.0 %"))),
        caption="100 × λ & more.",
        rules=(1,),
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
        "\\midrule\n"
        "gain & +5.0 \\% \\\\\n"
        "\\bottomrule\n"
        "\\end{tabular}\n"
        "\\end{table}\n"
    )


def test_terminal_tables_fit_80_characters(record, tmp_path: Path) -> None:
    folder = StudyFolder.create(StudyConfig(storage=str(tmp_path), seeds=(0, 1, 2, 3, 4)))
    for seed in range(5):
        folder.write_trial(record("without_group_negatives", "iisan", 0.2, seed=seed))
    for variant in ("lora", "ia3", "iisan"):
        for seed in range(5):
            for mode in ("sequential", "parallel"):
                folder.write_trial(
                    record("perpeft", variant, 0.21 + 0.02 * seed, seed=seed, mode=mode)
                )
    console = Console(width=80, record=True, file=(tmp_path / "out").open("w"))
    for table in study_tables(folder):
        for text in table.printed:
            console.print(text.terminal())
    out = console.export_text()
    assert "without_group_negatives" in out
    assert out.count("25.00 ± 3.16") == 6
    assert "…" not in out


def test_any_method_of_the_paper_appears_in_the_papers_order(record, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    for method in ("random_grouping", "perpeft", "global"):
        folder.write_trial(record(method, "lora", 0.1))
    trials = folder.trials()
    others = [method for method in METHODS if method not in set(trials.method)]
    rows = [trials.iloc[[0]].assign(method=method) for method in reversed(others)]
    study = StudyConfig(methods=("global",), parallel_workers=0, peft=PeftSettings(variant="lora"))
    table = ablation_table(pd.concat([*rows, trials]), study)
    rows = table.printed[0].rows
    assert [row[0].text for row in rows] == [*METHODS, "perpeft gain"]
    assert table.numbers.method.drop_duplicates().tolist() == list(METHODS)
    assert "our reading of the paper's rows" in table.printed[0].caption


def test_the_papers_numbers_stand_beside_its_own_data_sets(record, tmp_path: Path) -> None:
    study = StudyConfig(
        dataset="parquet:data/arts",
        methods=("frozen_mm", "global", "perpeft"),
        peft=PeftSettings(variant="lora"),
        parallel_workers=0,
    )
    folder = StudyFolder(tmp_path)
    folder.write_trial(record("perpeft", "lora", 0.03, study=study))
    table = ablation_table(folder.trials(), study)
    own, paper = table.printed[:2]
    assert [row[1].text for row in own.rows[:3]] == ["–", "–", "3.00"]
    assert paper.title == "The paper's NDCG@20 on Arts, Crafts & Sewing"
    assert [[cell.text for cell in row] for row in paper.rows] == [
        ["frozen_mm", "1.89"],
        ["global", "2.42"],
        ["perpeft", "2.76 ± 0.04"],
    ]
    numbers = table.numbers.set_index("metric")
    assert numbers.paper_mean["ndcg_at_20"] == pytest.approx(0.0276)
    assert pd.isna(numbers.paper_mean["ndcg_at_10"])


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
