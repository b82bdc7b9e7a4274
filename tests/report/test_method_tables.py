"""The tables of compared methods against numbers worked out by hand from ranks."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from perpeft_ray.config import METHODS, PeftSettings, SearchSettings, StudyConfig
from perpeft_ray.report.method_tables import ablation_table, metrics_table, slices_table
from perpeft_ray.report.statistics import compare_all, user_values
from perpeft_ray.report.text import TextTable
from tests.records import Frames, Record, frames_of, with_ranks

STUDY = StudyConfig(
    seeds=(0, 1),
    methods=("without_mm", "global", "perpeft"),
    search=SearchSettings(variants=("lora", "ia3")),
)
# Of users u0 to u5: u0 and u1 have test items that occur 0 times, u2 and u3 once, u4 and u5 twice.
RANKS = [0, 4, 1, 30, 2, 9]


@pytest.fixture
def frames(record: Record) -> Frames:
    records = [
        with_ranks(record("perpeft"), RANKS),
        with_ranks(record("global"), [rank + 1 for rank in RANKS]),
        record("perpeft", score=0.2, phase="search", minute=1),
    ]
    return frames_of(records)


def texts(table: TextTable) -> list[list[str]]:
    return table.texts.to_numpy().tolist()


def of(numbers: pd.DataFrame, **where: object) -> pd.DataFrame:
    return numbers[np.logical_and.reduce([numbers[name] == v for name, v in where.items()])]


def test_the_main_table_of_a_study_half_done(record: Record) -> None:
    # NDCG@20 of rank 0 is 1, of rank 2 is 1/2, and of rank 40 is 0.
    records = [
        with_ranks(record("without_mm", None, seed=0), [40, 0]),
        with_ranks(record("without_mm", None, seed=1), [0, 0]),
        with_ranks(record("global", "lora", seed=0), [2, 0]),
        with_ranks(record("perpeft", "lora", seed=0), [0, 0]),
        record("perpeft", "ia3", status="FAIL"),
    ]
    ndcg, hits = ablation_table(*frames_of(records), STUDY, ()).printed
    # A user's value is the mean over seeds: 1/2 and 1, whose standard error is 1/4.
    title, _, header, _, *rows, _, caption = ndcg.markdown().splitlines()
    assert title == "### Test NDCG@20 × 100 on toyshop"
    assert [[cell.strip() for cell in row.strip("|").split("|")] for row in (header, *rows)] == [
        ["method", "lora", "ia3"],
        ["without_mm", "75.00 ± 25.00", "**75.00 ± 25.00**"],
        ["global", "75.00 ± 25.00", "–"],
        ["perpeft", "**100.00 ± 0.00**", "–"],
    ]
    assert caption == "mean ± standard error over users; seeds: 1; bold: best of the column."
    assert hits.title == "Test HR@20 × 100 on toyshop"


def test_methods_significantly_better_than_global_are_marked(record: Record) -> None:
    rng = np.random.default_rng(0)
    worse, better = rng.integers(5, 60, 400), rng.integers(0, 8, 400)
    ranks = {"without_mm": better, "global": worse, "perpeft": better + 1, "frozen_mm": worse + 1}
    trials, users = frames_of(
        [
            with_ranks(record(m, "lora" if m in ("global", "perpeft") else None), own)
            for m, own in ranks.items()
        ]
    )
    compared = compare_all(user_values(trials, users))
    ndcg, _ = ablation_table(trials, users, STUDY, compared).printed
    marked = {row[0] for row in texts(ndcg) if row[1].endswith("*")}
    assert marked == {"without_mm", "perpeft"}
    assert ndcg.caption.endswith("; * better than global, p < 0.05 (Holm).")


def test_a_log_marks_the_cells_that_a_terminal_prints_bold(record: Record) -> None:
    records = [with_ranks(record(m, "lora"), [at]) for m, at in (("global", 2), ("perpeft", 0))]
    table = ablation_table(*frames_of(records), STUDY, ()).printed[0]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table.terminal(bold=False))
    out = console.export_text()
    assert "▸100.00" in out
    assert "▸: best of the column" in " ".join(out.split())
    assert "mean ± standard error over users; seeds: 1" in out  # not broken up, though narrow


def test_counting_methods_have_no_seeds_in_the_caption(record: Record) -> None:
    frames = frames_of([with_ranks(record("popularity"), [0, 2])])
    table = ablation_table(*frames, replace(STUDY, methods=("popularity",)), ()).printed[0]
    assert table.caption == "mean ± standard error over users; bold: best of the column."


def test_any_method_of_the_paper_has_its_place_in_the_papers_order(record: Record) -> None:
    trials, users = frames_of([record(m, "lora") for m in ("random_grouping", "global")])
    others = [method for method in METHODS if method not in set(trials.method)]
    rows = [trials.iloc[[0]].assign(method=method) for method in reversed(others)]
    study = StudyConfig(methods=("global",), peft=PeftSettings(variant="lora"))
    table = ablation_table(pd.concat([*rows, trials]), users, study, ())
    assert [row[0] for row in texts(table.printed[0])] == list(METHODS)
    assert table.numbers.method.drop_duplicates().tolist() == list(METHODS)
    assert "our reading of the paper's rows" in table.printed[0].caption


def test_rank_metrics_at_the_chosen_lengths(frames: Frames) -> None:
    numbers = metrics_table(*frames, (1, 5)).numbers
    assert sorted(set(numbers.k)) == [1, 5]
    [hits] = of(numbers, method="perpeft", metric="hr", k=5)["mean"]
    assert hits == pytest.approx(4 / 6)
    [mrr] = of(numbers, method="perpeft", metric="mrr", k=5).itertuples()
    users = [1, 1 / 5, 1 / 2, 0, 1 / 3, 0]
    assert mrr.mean == pytest.approx(sum(users) / 6)
    assert mrr.error == pytest.approx(np.std(users, ddof=1) / math.sqrt(6))


def test_coverage_and_popularity_are_those_of_the_trials(frames: Frames) -> None:
    table = metrics_table(*frames, (1, 4))
    assert of(table.numbers, method="perpeft", metric="coverage", k=1)["mean"].tolist() == [0.25]
    assert of(table.numbers, method="perpeft", metric="popularity", k=4)["mean"].tolist() == [2.0]
    assert [text.title for text in table.printed] == ["Test metrics at 1", "Test metrics at 4"]
    assert texts(table.printed[0])[1][-2:] == ["25.00", "8.0"]


def test_users_are_cut_by_the_occurrences_of_their_test_item(frames: Frames) -> None:
    own = of(slices_table(*frames).numbers, method="perpeft", by="test_item_occurrences")
    assert list(zip(own.low, own.high, own.users, strict=True)) == [(0, 0, 2), (1, 1, 2), (2, 2, 2)]
    gains = [(1 + 1 / math.log2(6)) / 2, 1 / math.log2(3) / 2, (0.5 + 1 / math.log2(11)) / 2]
    assert own["mean"].tolist() == pytest.approx(gains)


def test_users_are_cut_by_the_length_of_their_history(frames: Frames) -> None:
    table = slices_table(*frames)
    assert list(table.printed[1].texts) == ["method", "1", "2–3", "4–5"]
    assert of(table.numbers, method="global", by="history_length").users.sum() == 6


def test_users_with_equally_long_histories_are_one_part(frames: Frames) -> None:
    trials, users = frames
    table = slices_table(trials, users.assign(history_length=4))
    assert list(table.printed[1].texts) == ["method", "4"]
    assert of(table.numbers, method="global", by="history_length").users.tolist() == [6]


def test_without_final_trials_the_tables_are_empty(record: Record) -> None:
    frames = frames_of([record("perpeft", phase="search")])
    assert metrics_table(*frames, (10,)).printed == slices_table(*frames).printed == ()
