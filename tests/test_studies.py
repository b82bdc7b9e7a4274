"""The scripts of studies/: each declares its question, and its defaults are a valid study."""

from __future__ import annotations

import importlib.util
import pkgutil
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest

from perpeft_ray.config import SIMPLE_METHODS, TABLE_2, TABLE_3
from perpeft_ray.config.presets import Preset, preset
from perpeft_ray.study.plan import search_budget, searching_methods

STUDIES = Path(__file__).parents[1] / "studies"
ADAPTED = ("ablation_components", "sensitivity", "efficiency", "pareto", "real_data")


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, STUDIES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ADAPTED)
def test_defaults_are_a_study_of_their_own(name):
    script = load(name)
    for chosen in get_args(Preset):
        study = script.defaults(preset(chosen))
        assert study.study == name
        assert study.dataset == "toyshop"


@pytest.mark.parametrize("name", ADAPTED)
def test_what_a_question_runs_is_there(name):
    assert callable(pkgutil.resolve_name(load(name).QUESTION.run))


@pytest.mark.parametrize("name", ["ablation_peft", *ADAPTED])
def test_every_script_says_how_it_is_run_and_what_it_is_about(name):
    text = (STUDIES / f"{name}.py").read_text()
    for part in ("Small", "Full", f"python studies/{name}.py", "Scientific:", "Nuisance:"):
        assert part in text, (name, part)


def test_the_tables_of_the_paper_are_covered():
    assert set(TABLE_2) <= set(preset("full").methods)
    assert set(TABLE_2) <= set(preset("paper").methods)
    assert set(TABLE_3) <= set(load("ablation_components").defaults(preset("toyshop")).methods)


def test_real_data_searches_every_trained_method_alike():
    study = load("real_data").defaults(preset("toyshop"))
    trained = set(study.methods) - SIMPLE_METHODS
    assert set(searching_methods(study)) == trained
    for method in trained - {"without_mm"}:  # ids have no multimodal weight: a smaller space
        assert search_budget(study, method) == study.search.trials
    assert {len(study.values(name)) for name in ("learning_rate", "multimodal_weight")} == {2}


def test_bad_input_of_a_script_exits_with_2(tmp_path):
    ended = subprocess.run(
        [sys.executable, STUDIES / "sensitivity.py", "--search.ranks", "0"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: `search.ranks` must be")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", sorted(file.stem for file in STUDIES.glob("*.py")))
def test_an_unknown_option_of_a_script_is_told_in_one_line(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, *(["x"] if name == "findings" else []), "--sede", "1"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(STUDIES / f"{name}.py"), run_name="__main__")
    assert ended.value.code == 2
    nearest = {"findings": "", "pretrain_toyshop_clip": "; did you mean `seed`?"}
    near = nearest.get(name, "; did you mean `seeds`?")
    assert capsys.readouterr().err == f"error: unknown field `sede`{near}\n"


def test_bfloat16_needs_a_seed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bfloat16", "--seeds"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(STUDIES / "bfloat16.py"), run_name="__main__")
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: `seeds` must have at least one value, but is empty\n"


def test_the_order_on_fresh_catalogues_counts_catalogues_and_corrects_p():
    order = load("toyshop_order")
    rng = np.random.default_rng(0)
    users = pd.DataFrame({"dataset": np.repeat(["toyshop:1", "toyshop:2"], 50), "seed": 0})
    users["user_id"] = [f"user{n}" for n in range(100)]
    for method in ("without_mm", "frozen_mm", *(below for _, below in order.ORDERINGS)):
        users[method] = rng.uniform(0, 0.1, size=100)
    users["perpeft"] = users["global"] + np.repeat([0.3, -0.1], 50) + rng.normal(0, 0.01, 100)
    text = order.report(users, pd.DataFrame([{"catalogue": "toyshop:1", "global": "5.00"}]))
    assert "| toyshop:1 | 5.00 |" in text
    (line,) = (line for line in text.splitlines() if line.startswith("| perpeft > global |"))
    _, _, difference, _, p, corrected, catalogues, _ = map(str.strip, line.split("|"))
    expected = 100 * (users["perpeft"] - users["global"])
    assert difference.startswith(f"{expected.mean():+.2f} [")
    assert float(p) < 0.001
    assert corrected == "<.001"
    assert catalogues == "1 of 2"
