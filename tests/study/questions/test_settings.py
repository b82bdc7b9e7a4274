"""Studies that compare settings: sensitivity, Pareto front, efficiency; with a runner that does not
train."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from ray.tune.result import DONE

from perpeft_ray.config import METHODS, SearchSettings, StudyConfig, TrainSettings
from perpeft_ray.study.plan import search_trial
from perpeft_ray.study.progress import Progress
from perpeft_ray.study.questions.efficiency import efficiency_trials
from perpeft_ray.study.questions.front import on_front
from perpeft_ray.study.questions.pareto import run_front
from perpeft_ray.study.questions.sensitivity import run_sensitivity
from perpeft_ray.study.search.suggest import Suggestions, open_journal, optuna_study_name
from perpeft_ray.study.trainable import OBJECTIVE


def run(function: Callable[..., None], *arguments: Any) -> str:
    """Call with progress; what it printed."""
    out = io.StringIO()
    with Progress(out) as progress:
        function(*arguments, progress)
    return out.getvalue()


@pytest.mark.usefixtures("ray_runtime")
def test_sensitivity_varies_one_setting_about_the_best(
    make_study: Callable[..., Any], small_study: Callable[..., Any]
) -> None:
    config = small_study(seeds=(0, 1), methods=("perpeft",), parallel_workers=0)
    config = replace(config, peft=replace(config.peft, variant="lora"))
    study = make_study(config)
    run(run_sensitivity, study)
    rows = study.recorder.rows()
    names = ("groups", "rank", "conditioning_weight", "learning_rate")
    [best] = {tuple(row[name] for name in names) for row in rows if row["phase"] == "ablation"}
    curves = [row for row in rows if row["phase"] == "settings"]
    assert all(row["test"] for row in curves)
    found = Counter(tuple(row[name] for name in names) for row in curves)
    expected = {
        (*best[:place], value, *best[place + 1 :])
        for place, name in enumerate(names)
        for value in config.values(name)
    }
    assert found == dict.fromkeys(expected, 2)  # once a seed
    run(run_sensitivity, study)  # again: nothing is left to do
    assert study.recorder.rows() == rows


@pytest.mark.usefixtures("ray_runtime")
def test_the_front_of_a_search_for_two_objectives_reads_test(
    make_study: Callable[..., Any], small_study: Callable[..., Any]
) -> None:
    config = small_study(methods=("perpeft",), parallel_workers=0)
    config = replace(config, search=replace(config.search, pareto=True))
    study = make_study(config)

    run(run_front, study)
    rows = study.recorder.rows()
    searched = [row for row in rows if row["phase"] == "search"]
    assert {row["status"] for row in searched} == {"COMPLETE"}  # nothing is stopped early
    storage = open_journal(study.folder / "optuna.journal")
    loaded = optuna.load_study(study_name=optuna_study_name(config), storage=storage)
    assert [direction.name for direction in loaded.directions] == ["MAXIMIZE", "MINIMIZE"]
    values = {tuple(trial.values) for trial in loaded.best_trials}
    front = [row for row in rows if row["phase"] == "settings"]
    assert {(row["valid"], (row["rank"] or 1) * row["groups"]) for row in front} == values
    assert all(row["test"] for row in front)


def test_optuna_is_told_both_objectives(tmp_path: Path) -> None:
    study = StudyConfig(
        train=TrainSettings(epochs=2, personal_epochs=4),
        search=SearchSettings(pareto=True),
    )
    sizes: dict[str, int] = {}
    search = Suggestions(study, tmp_path / "journal", tried=(), sizes=lambda: sizes)
    told = []
    for index in range(8):
        setting = search.suggest_setting(str(index))
        key = search_trial(study, setting).config.config_hash
        sizes[key] = setting["groups"] * setting.get("rank", 1)
        score = 0.01 * index
        told.append((score, float(sizes[key])))
        search.on_trial_result(str(index), {"record/epoch": 4, OBJECTIVE: score, DONE: False})
        last = {"record/epoch": 6, OBJECTIVE: score, DONE: True}
        search.on_trial_complete(str(index), last)
    storage = open_journal(tmp_path / "journal")
    loaded = optuna.load_study(study_name=optuna_study_name(study), storage=storage)
    assert [tuple(trial.values) for trial in loaded.trials] == told
    scores, seen = zip(*told, strict=True)
    front = {pair for pair, on in zip(told, on_front(seen, scores), strict=True) if on}
    assert {tuple(trial.values) for trial in loaded.best_trials} == front
    alone = replace(study, search=replace(study.search, pareto=False))
    assert optuna_study_name(alone) != optuna_study_name(study)


def test_efficiency_has_every_cell_once_at_every_rank() -> None:
    study = StudyConfig(methods=METHODS, search=SearchSettings(ranks=(2, 8), groups=(4,)))
    specs = efficiency_trials(study)
    cells = Counter((s.config.method, s.config.variant, s.config.rank) for s in specs)
    assert set(cells.values()) == {1}
    assert {("perpeft", "lora", 2), ("perpeft", "lora", 8), ("perpeft", "ia3", None)} <= set(cells)
    assert ("large_global", "lora", 8 * 4) in cells
    assert ("large_global", "ia3", None) not in cells
    assert [cell for cell in cells if cell[0] == "frozen_mm"] == [("frozen_mm", None, None)]
    assert all(spec.test and spec.phase == "settings" for spec in specs)
