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
from optuna.trial import TrialState

from perpeft_ray.config import METHODS, SearchSettings, StudyConfig
from perpeft_ray.metrics import on_front
from perpeft_ray.study.progress import Progress
from perpeft_ray.study.questions import efficiency_trials, run_front, run_sensitivity
from perpeft_ray.study.search.suggest import open_journal, open_searches, optuna_study_name
from tests.study.conftest import rows_of


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
    rows = rows_of(study)
    names = ("groups", "rank", "conditioning_weight", "learning_rate")
    [best] = {tuple(row[name] for name in names) for row in rows if row["phase"] == "ablation"}
    curves = [row for row in rows if row["phase"] == "settings"]
    assert None not in {row["test_ndcg_at_20"] for row in curves}
    found = Counter(tuple(row[name] for name in names) for row in curves)
    expected = {
        (*best[:place], value, *best[place + 1 :])
        for place, name in enumerate(names)
        for value in config.values(name)
    }
    assert found == dict.fromkeys(expected, 2)  # once a seed
    run(run_sensitivity, study)  # again: nothing is left to do
    assert rows_of(study) == rows


@pytest.mark.usefixtures("ray_runtime")
def test_the_front_of_a_search_for_two_objectives_reads_test(
    make_study: Callable[..., Any], small_study: Callable[..., Any]
) -> None:
    config = small_study(methods=("perpeft",), parallel_workers=0)
    config = replace(config, search=replace(config.search, pareto=True))
    study = make_study(config)

    run(run_front, study)
    rows = rows_of(study)
    searched = [row for row in rows if row["phase"] == "search"]
    assert {row["status"] for row in searched} == {"COMPLETE"}  # nothing is stopped early
    storage = open_journal(study.folder.path / "optuna.journal")
    loaded = optuna.load_study(study_name=optuna_study_name(config, "perpeft"), storage=storage)
    assert [direction.name for direction in loaded.directions] == ["MAXIMIZE", "MINIMIZE"]
    values = {tuple(trial.values) for trial in loaded.best_trials}
    front = [row for row in rows if row["phase"] == "settings"]
    assert {
        (row["valid_ndcg_at_20"], (row["rank"] or 1) * row["groups"]) for row in front
    } == values
    assert None not in {row["test_ndcg_at_20"] for row in front}


def test_optuna_is_told_both_objectives(tmp_path: Path) -> None:
    study = StudyConfig(search=SearchSettings(pareto=True, trials=8))
    search = open_searches(study, tmp_path / "journal", {})["perpeft"]
    told = []
    for index in range(8):
        config = search.ask(str(index)).config
        told.append((0.01 * index, float((config.groups or 1) * (config.rank or 1))))
        search.report(str(index), 4, told[-1][0])
        search.tell(str(index), "COMPLETE", told[-1][0], int(told[-1][1]))
    storage = open_journal(tmp_path / "journal")
    name = optuna_study_name(study, "perpeft")
    loaded = optuna.load_study(study_name=name, storage=storage)
    assert [tuple(t.values) for t in loaded.get_trials(states=(TrialState.COMPLETE,))] == told
    scores, seen = zip(*told, strict=True)
    front = {pair for pair, on in zip(told, on_front(seen, scores), strict=True) if on}
    assert {tuple(trial.values) for trial in loaded.best_trials} == front


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
