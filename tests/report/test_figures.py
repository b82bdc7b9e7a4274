"""Figures are drawn from what is there, and what they are drawn from is right."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from perpeft_ray.config import VARIANTS, StudyConfig
from perpeft_ray.metrics import on_front
from perpeft_ray.report.drawing import PANEL, VARIANT_COLOURS, VARIANT_MARKERS
from perpeft_ray.report.figures import (
    effects,
    groups_and_gains,
    parameter_importance,
    search_history,
    sensitivity_curves,
    study_figures,
    write_figures,
)
from perpeft_ray.report.statistics import (
    compare_all,
    group_gains,
    paired_users,
    read_values,
    user_values,
)
from perpeft_ray.report.tables import StudyResults
from perpeft_ray.store.folder import StudyFolder
from tests.records import frames_of, with_ranks


@pytest.fixture
def folder(record, tmp_path: Path) -> StudyFolder:
    folder = StudyFolder.create(StudyConfig(storage=str(tmp_path), seeds=(0, 1)))
    for n in range(7):
        variant = ("lora", "ia3", "iisan")[n % 3]
        folder.write_trial(
            record(
                "perpeft",
                variant,
                0.05 + 0.01 * n,
                phase="search",
                learning_rate=(5e-3, 1e-2)[n % 2],
                trial_id=f"s{n}",
            )
        )
    folder.write_trial(record("perpeft", "lora", phase="search", status="PRUNED", trial_id="p"))
    for seed in (0, 1):
        folder.write_trial(record("without_mm", None, 0.05, seed=seed))
        folder.write_trial(record("global", "lora", 0.08, seed=seed))
        folder.write_trial(record("perpeft", "lora", 0.1 + 0.01 * seed, seed=seed))
    return folder


def test_every_variant_can_be_drawn_and_told_apart(record, tmp_path: Path) -> None:
    folder = StudyFolder.create(StudyConfig(storage=str(tmp_path)))
    for variant in VARIANTS:
        for rate in (5e-3, 1e-2):
            folder.write_trial(record("perpeft", variant, phase="search", learning_rate=rate))
        folder.write_trial(record("global", variant))
        folder.write_trial(record("perpeft", variant))
    drawn = {figure.name for figure in write_figures(StudyResults.read(folder))}
    assert drawn >= {"accuracy_against_parameters", "groups", "search_history", "effects"}
    for looks in (VARIANT_COLOURS, VARIANT_MARKERS):
        assert len({looks[variant] for variant in (None, *VARIANTS)}) == 1 + len(VARIANTS)


def test_figures_are_written_as_images(folder: StudyFolder) -> None:
    figures = write_figures(StudyResults.read(folder))
    assert [figure.name for figure in figures] == [
        "effects",
        "learning_curves",
        "parameter_importance",
        "search_history",
        "accuracy_against_parameters",
        "groups",
        "user_map",
    ]
    for figure in figures:
        with Image.open(folder.path / "figures" / f"{figure.name}.png") as image:
            assert image.width > 600
            assert len(image.convert("RGB").getcolors(image.width * image.height)) > 20


def test_a_study_without_trials_has_no_figures(tmp_path: Path) -> None:
    assert (
        study_figures(StudyResults.read(StudyFolder.create(StudyConfig(storage=str(tmp_path)))))
        == []
    )


def test_the_history_shows_the_best_so_far_and_the_pruned(folder: StudyFolder) -> None:
    figure = search_history(folder.trials(), folder.epochs())
    assert figure is not None
    assert figure.caption == (
        "8 trials of PerPEFT, of which 1 were stopped early (crosses); the best reached 11.00 in "
        "validation."
    )


def test_importance_needs_more_trials_than_settings(folder: StudyFolder) -> None:
    trials = folder.trials()
    few = trials[trials.trial_id.isin(["s0", "s1", "s2"])]
    assert parameter_importance(few) is None


def test_pareto_front_by_hand() -> None:
    sizes = [0, 10, 10, 20, 30]
    scores = [0.1, 0.2, 0.15, 0.2, 0.3]
    assert on_front(sizes, scores).tolist() == [True, True, False, False, True]


def test_group_gains_by_hand() -> None:
    users = pd.DataFrame(
        {"group": [7, 7, 3, 3, 3], "a": [1.0, 0.0, 0.5, 0.5, 0.5], "b": [0.0, 0.0, 0.5, 0.0, 1.0]}
    )
    gains = group_gains(users).set_index("group")
    assert gains.users.to_dict() == {3: 3, 7: 2}
    assert gains.gain.to_dict() == pytest.approx({3: 0.0, 7: 0.5})
    # The mean of two draws from differences of 1 and 0 is 0, 0.5 or 1.
    assert (gains.gain_low[7], gains.gain_high[7]) == (0.0, 1.0)


def test_groups_are_those_of_the_test(folder: StudyFolder) -> None:
    values = read_values([folder.path])
    users = paired_users(values, "perpeft", "global", "lora")
    assert users.group.tolist() == [0, 0, 0, 0]  # `test_group` of conftest's two evaluated users
    assert groups_and_gains(values[values.method == "perpeft"]) is None


def test_sensitivity_has_a_panel_for_each_setting_that_varies(record, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    for rank in (2, 4, 8):
        folder.write_trial(record("perpeft", "lora", 0.1, rank=rank))
    folder.write_trial(record("perpeft", "lora", 0.1, rank=2, learning_rate=5e-3))
    figure = sensitivity_curves(folder.trials())
    assert figure is not None
    labels = [axes.get_xlabel() for axes in figure.figure.axes]
    assert labels == ["rank", "learning rate"]
    (line,) = (line for line in figure.figure.axes[0].lines if len(line.get_xdata()))
    assert np.asarray(line.get_xdata()).tolist() == [2, 4, 8]


def test_no_interval_of_the_effects_is_cut_and_no_text_leaves_the_figure(record) -> None:
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


@pytest.mark.parametrize("name", ["effects", "learning_curves", "groups", "user_map"])
def test_figures_are_narrow_enough_to_be_read_on_a_phone(folder: StudyFolder, name: str) -> None:
    figures = {figure.name: figure for figure in study_figures(StudyResults.read(folder))}
    # 9 point text in 3.6 inches is 9/72 · 400/3.6 = 14 pixels high at 400 pixels.
    assert figures[name].figure.get_figwidth() == PANEL[0]
    assert mpl.rcParams["font.size"] == 9
