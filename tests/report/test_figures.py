"""Figures are drawn from the trials so far, and show what they say."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from perpeft_ray.config import VARIANTS, StudyConfig
from perpeft_ray.metrics import on_front
from perpeft_ray.report.drawing import PANEL, VARIANT_LOOKS
from perpeft_ray.report.figures import (
    effects,
    groups_and_gains,
    parameter_importance,
    search_history,
    sensitivity_curves,
    write_figures,
)
from perpeft_ray.report.statistics import compare_all, paired_users, user_values
from perpeft_ray.report.tables import StudyResults
from perpeft_ray.store.record import TrialRecord
from tests.records import Record, frames_of, with_ranks, written


@pytest.fixture
def records(record: Record) -> list[TrialRecord]:
    """A search and its ablation with LoRA, two seeds."""
    searched = [
        record(
            variant=("lora", "ia3", "iisan")[n % 3],
            score=0.05 + 0.01 * n,
            phase="search",
            learning_rate=(5e-3, 1e-2)[n % 2],
            trial_id=f"s{n}",
        )
        for n in range(7)
    ]
    return [
        *searched,
        record(phase="search", status="PRUNED", trial_id="p"),
        *(record("without_mm", None, 0.05, seed=seed) for seed in (0, 1)),
        *(record("global", "lora", 0.08, seed=seed) for seed in (0, 1)),
        *(record("perpeft", "lora", 0.1 + 0.01 * seed, seed=seed) for seed in (0, 1)),
    ]


@pytest.fixture
def results(records: list[TrialRecord], tmp_path: Path) -> StudyResults:
    study = StudyConfig(storage=str(tmp_path), seeds=(0, 1))
    return StudyResults.read(written(study, records))


def test_figures_are_written_as_images_for_a_narrow_screen(results: StudyResults) -> None:
    files = write_figures(results)
    assert [file.name for file in files.values()] == [
        *("effects.png", "learning_curves.png", "parameter_importance.png", "search_history.png"),
        *("accuracy_against_parameters.png", "groups.png", "user_map.png"),
    ]
    assert mpl.rcParams["font.size"] == 9
    for figure, file in files.items():
        # 9 point text in 3.6 inches is 9/72 · 400/3.6 = 14 pixels high on a phone of 400 pixels.
        assert figure.figure.get_figwidth() == PANEL[0]
        with Image.open(file) as image:
            assert image.width > 600
            assert len(image.convert("RGB").getcolors(image.width * image.height)) > 20


def test_every_variant_looks_different() -> None:
    for look in ("color", "marker"):
        assert len({VARIANT_LOOKS[variant][look] for variant in (None, *VARIANTS)}) == 13


def test_every_variant_can_be_drawn(record: Record) -> None:
    frames = frames_of([record(m, v) for v in VARIANTS for m in ("global", "perpeft")])
    values = user_values(*frames)
    drawn = groups_and_gains(values)
    assert drawn is not None
    assert [axes.get_title() for axes in drawn.figure.axes] == list(VARIANTS)


def test_the_history_shows_the_best_so_far_and_the_pruned(results: StudyResults) -> None:
    figure = search_history(results.trials, results.folder.epochs())
    assert figure is not None
    assert figure.caption == (
        "8 trials of PerPEFT, of which 1 were stopped early (crosses); the best reached 11.00 in "
        "validation."
    )


def test_importance_needs_more_trials_than_settings(records: list[TrialRecord]) -> None:
    assert parameter_importance(frames_of(records[:3])[0]) is None


def test_pareto_front_by_hand() -> None:
    sizes = [0, 10, 10, 20, 30]
    scores = [0.1, 0.2, 0.15, 0.2, 0.3]
    assert on_front(sizes, scores).tolist() == [True, True, False, False, True]


def test_groups_are_those_of_the_test(records: list[TrialRecord]) -> None:
    values = user_values(*frames_of(records))
    users = paired_users(values, "perpeft", "global", "lora")
    assert users.group.tolist() == [0, 0, 0, 0]  # `test_group` of the two evaluated users
    assert groups_and_gains(values[values.method == "perpeft"]) is None


def test_sensitivity_has_a_panel_for_each_setting_that_varies(record: Record) -> None:
    tried = ((2, 1e-2), (4, 1e-2), (8, 1e-2), (2, 5e-3))
    trials, _ = frames_of([record(rank=rank, learning_rate=rate) for rank, rate in tried])
    figure = sensitivity_curves(trials)
    assert figure is not None
    ranks, rates = figure.figure.axes
    assert (ranks.get_xlabel(), rates.get_xlabel()) == ("rank", "learning rate")
    assert np.asarray(ranks.lines[0].get_xdata()).tolist() == [2, 4, 8]


def test_intervals_of_the_effects_and_all_text_are_inside_the_figure(record: Record) -> None:
    rng = np.random.default_rng(0)
    records = [
        with_ranks(record(method, variant), rng.integers(0, 40, 80))
        for method in ("without_mm", "global", "without_group_negatives", "perpeft")
        for variant in (("lora", "ia3") if method != "without_mm" else (None,))
    ]
    compared = compare_all(user_values(*frames_of(records)))
    drawn = effects(compared)
    assert drawn is not None
    [axes] = drawn.figure.axes
    left, right = axes.get_xlim()
    for comparison in compared:
        if comparison.method_a == "perpeft":
            assert left < 100 * comparison.interval[0] < 100 * comparison.interval[1] < right
    drawn.figure.draw_without_rendering()
    whole = drawn.figure.get_tightbbox()
    assert whole.x0 >= -0.02
    assert whole.x1 <= PANEL[0] + 0.02
