"""The plan of a study of one's own data."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from perpeft_ray.api import plan as plan_module
from perpeft_ray.api.plan import Cost, chosen, estimated, plan_study, seconds_of, within
from perpeft_ray.cli.parsing import parse
from perpeft_ray.cli.study import StudyCommand
from perpeft_ray.config import (
    AUTO,
    DataSettings,
    GroupingSettings,
    SearchSettings,
    StudyConfig,
    TrainSettings,
)
from perpeft_ray.data.interactions import Dataset
from perpeft_ray.data.split import split_dataset
from perpeft_ray.encoder import source
from perpeft_ray.errors import InputError
from perpeft_ray.store.folder import StudyFolder
from tests.small_shop import write_small_shop

OWN = StudyConfig(dataset="parquet:x", encoder="toyshop-clip")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_shop(tmp_path_factory.mktemp("own") / "my shop", users=150, items=40)


@pytest.fixture
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "hub_answers", lambda: False)
    monkeypatch.setattr(source, "is_fetched", lambda _: False)


@pytest.mark.parametrize(
    ("users", "groups", "batch"), [(90, (2,), 16), (300, (4,), 16), (12_000, (4, 8), 128)]
)
def test_groups_have_fifty_users_and_steps(users: int, groups: tuple[int, ...], batch: int) -> None:
    study = chosen(OWN, (), users)
    assert study.values("groups") == groups
    assert study.train.batch_size == batch
    assert study.train.patience > 0


def test_what_is_given_stays() -> None:
    given = replace(
        OWN, train=TrainSettings(batch_size=7), search=SearchSettings(variants=("lora", "ia3"))
    )
    study = chosen(given, {"train.batch_size", "search.variants"}, 12_000)
    assert study.train.batch_size == 7
    assert study.values("variant") == ("lora", "ia3")
    assert study.search.trials == 16


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("grouping.groups", {"grouping": GroupingSettings(groups=32)}),
        ("search.groups", {"search": SearchSettings(groups=(32, 16))}),
    ],
)
def test_more_groups_have_smaller_batches(name: str, setting: dict[str, Any]) -> None:
    assert chosen(replace(OWN, **setting), {name}, 12_000).train.batch_size == 32


def test_the_estimate_by_hand() -> None:
    """Two epochs in both stages, one trial at a time; `global` has one rate, so no search."""
    study = StudyConfig(
        methods=("popularity", "global", "perpeft"),
        train=TrainSettings(epochs=2, personal_epochs=4, validate_every=2),
        search=SearchSettings(
            trials=2,
            max_concurrent=1,
            variants=("lora",),
            ranks=(4,),
            groups=(3,),
            conditioning_weights=(0.5, 1.0),
            learning_rates=(0.01,),
        ),
    )
    cost = Cost(prepare=100.0, epoch=10.0, evaluation=1.0)
    of_global = 6 * 10 + 3 * 1
    of_perpeft = 6 * 10 + (1 + 2 * 3) * 1  # both settings are searched, the best is kept
    assert estimated(study, cost) == 100 + of_global + 2 * of_perpeft


def test_a_budget_takes_as_many_search_trials_as_fit() -> None:
    study, cost = chosen(OWN, (), 1000), Cost(1.0, 1.0, 1.0)
    budget = estimated(study, cost)
    most = within(study, cost, budget)
    more = replace(most, search=replace(most.search, trials=most.search.trials + 1))
    assert estimated(most, cost) <= budget < estimated(more, cost)
    assert within(study, cost, 1.0).search.trials == 1
    assert within(study, cost, 1e9).search.trials == 2**4 * 3  # every setting once


@pytest.mark.parametrize(("text", "seconds"), [("2h", 7200), ("90m", 5400), ("1h30m", 5400)])
def test_budgets(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["2", "h", "two hours", "0m"])
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(InputError, match="`budget` must be a time such as 2h"):
        seconds_of(text)


def test_a_plan_says_what_to_expect_and_writes_nothing(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan_module, "measured", lambda *_: Cost(30.0, 6.0, 1.0))
    config = StudyConfig(dataset=f"parquet:{shop}", encoder="toyshop-clip", seeds=(0, 1))
    plan = plan_study(config, "2h")
    assert plan.config.study == "my_shop"
    assert plan.config.seeds == (0, 1)
    assert estimated(plan.config, Cost(30.0, 6.0, 1.0)) <= 7200
    for words in ("of 150; 40 items, 39 with an image", "toyshop-clip", "time ", "a gain of"):
        assert words in str(plan)
    assert list(tmp_path.iterdir()) == []


def test_one_user_to_test_is_too_few_also_without_the_encoder(tmp_path: Path) -> None:
    shop = write_small_shop(tmp_path / "shop", users=3)  # with 1, 2 and 3 interactions
    with pytest.raises(InputError, match="at least 2 users with a test item, but has 1"):
        plan_study(StudyConfig(dataset=f"parquet:{shop}", encoder="someone/not-fetched"))


def test_a_sample_without_users_to_test_is_blamed_itself(shop: Path) -> None:
    config = replace(OWN, dataset=f"parquet:{shop}", data=DataSettings(sample_users=1))
    with pytest.raises(InputError, match=r"`data\.sample_users` must be enough for 2 users"):
        plan_study(config)


def test_the_smallest_effect_is_that_of_the_counted_spread(shop: Path) -> None:
    from scipy import stats

    from perpeft_ray.data.interactions import load_folder
    from perpeft_ray.data.split import split_dataset
    from perpeft_ray.metrics import ndcg
    from perpeft_ray.recommender.simple import simple_ranks

    split = split_dataset(load_folder(shop, "shop"))
    found = []
    for method in ("item_knn", "popularity"):
        ranks = simple_ranks(method, split, "valid")
        found.append(ndcg(ranks[ranks >= 0], 20))
    values = max(found, key=np.mean)
    two_sided, power = stats.norm.ppf(0.975), stats.norm.ppf(0.8)
    users = len(values) - two_sided**2 / 2
    effect = (two_sided + power) * values.std(ddof=1) / np.sqrt(users) / values.mean()
    study = chosen(OWN, (), len(values))
    assert f"a gain of {100 * effect:.0f} % or more" in plan_module._shows(study, split)


@pytest.mark.filterwarnings("error")
def test_one_user_in_validation_shows_no_effect() -> None:
    """By time: `a` is in the validation span, `a` and `b` are in the test span."""
    rows = [("a", "x"), ("b", "x"), ("b", "y"), ("c", "y"), ("c", "x"), ("d", "y"), ("a", "y")]
    rows += [("b", "z")]
    table = pd.DataFrame(rows, columns=["user_id", "item_id"]).assign(timestamp=range(len(rows)))
    items = pd.DataFrame({"item_id": ["x", "y", "z"]})
    dataset = Dataset("parquet:x", Path(), table, items, "", "")
    split = split_dataset(dataset, DataSettings(split="time", test_share=0.125))
    assert len(split.evaluated("valid")) == 1
    shows = plan_module._shows(chosen(OWN, (), 2), split)
    assert shows == "not known: not enough users in validation (1)"


def test_a_step_is_measured_on_a_few_users(shop: Path, tmp_path: Path) -> None:
    from perpeft_ray.data.interactions import load_folder

    study = chosen(replace(OWN, dataset=f"parquet:{shop}"), (), 100)
    cost = plan_module.measured(study, load_folder(shop, study.dataset), tmp_path)
    assert min(cost.prepare, cost.epoch, cost.evaluation) > 0


def test_a_study_that_has_begun_keeps_its_choices(shop: Path, tmp_path: Path) -> None:
    began = chosen(
        replace(OWN, dataset=f"parquet:{shop}", storage=str(tmp_path), study="my_shop"), (), 500
    )
    StudyFolder.create(began)
    again = StudyConfig(dataset=f"parquet:{shop}", storage=str(tmp_path), memory_gb=2.0)
    plan = plan_study(again)
    assert plan.config == replace(began, memory_gb=2.0)
    assert str(plan) == "Resumes my_shop with the settings it began with."


@pytest.mark.parametrize(
    ("was", "now", "words"),
    [
        ('"epochs": ', '"warmth": 3, "epochs": ', r"`train\.warmth` .* another version wrote"),
        ('"workers": 1', '"workers": 2', "`workers` must be 2 as in the study that"),
        ('{\n  "config"', '{{\n  "config"', "study.json must be JSON, but is damaged"),
    ],
)
def test_a_study_that_cannot_be_resumed_is_refused_before_it_is_planned(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, was: str, now: str, words: str
) -> None:
    monkeypatch.setattr(plan_module, "open_dataset", None)
    own = replace(OWN, dataset=f"parquet:{shop}", storage=str(tmp_path), study="own")
    file = StudyFolder.create(own).path / "study.json"
    file.write_text(file.read_text().replace(was, now))
    with pytest.raises(InputError, match=words):
        plan_study(own, given={"study", "workers"})


def test_a_refused_study_does_not_say_that_it_resumes(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    StudyFolder.create(replace(OWN, dataset=f"parquet:{shop}", storage=str(tmp_path), study="own"))
    arguments = ["--dataset", f"parquet:{shop}", "--storage", str(tmp_path), "--study", "own"]
    arguments += ["--train.epochs", "3"]
    command = parse(StudyCommand, arguments, default=StudyCommand.defaults(arguments))
    with pytest.raises(InputError, match=r"`train\.epochs` must be 8 as in the study that"):
        command.run()
    shown = capsys.readouterr()
    assert "esume" not in shown.out + shown.err


@pytest.mark.usefixtures("_offline")
def test_offline_the_toy_encoder_is_taken_with_a_warning(shop: Path) -> None:
    plan = plan_study(StudyConfig(dataset=f"parquet:{shop}"))
    assert plan.config.encoder == "toyshop-clip"
    for words in ("warning: toyshop-clip", "laion/CLIP-ViT-B-32", "605 MB, MIT", "pass --encoder"):
        assert words in str(plan)


@pytest.mark.usefixtures("_offline")
def test_without_images_the_default_is_a_text_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "find_spec", lambda _: None)
    name, words = source.default_encoder("parquet:x", has_images=False)
    assert name == "toyshop-clip"
    assert re.search(r"no copy of the default .*all-MiniLM-L6-v2 \(91 MB, Apache-2.0", words)
    monkeypatch.setattr(source, "hub_answers", lambda: True)
    name, words = source.default_encoder("parquet:x", has_images=False)
    assert name == "text:sentence-transformers/all-MiniLM-L6-v2"
    assert "fetched from" in words


def test_only_the_toyshop_has_the_toy_encoder() -> None:
    assert StudyConfig().encoder == StudyConfig(dataset="toyshop:3").encoder == "toyshop-clip"
    assert StudyConfig(dataset="parquet:x").encoder == AUTO
    command = StudyCommand(replace(StudyConfig(), dataset="parquet:x"), preset="paper")
    assert command.config.encoder == AUTO


@pytest.mark.parametrize("option", ["budget", "dry_run"])
def test_the_toyshops_study_has_no_plan(option: str) -> None:
    with pytest.raises(InputError, match=f"`{option}` must be left out for the toyshop"):
        StudyCommand(StudyConfig(), given=(option,)).run()


def test_a_preset_has_no_plan_either() -> None:
    with pytest.raises(InputError, match="`dry_run` must be left out with --preset paper,"):
        StudyCommand(OWN, preset="paper", given=("dataset", "preset", "dry_run")).run()


def test_a_dry_run_prints_the_plan_and_stops(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan_module, "measured", lambda *_: Cost(30.0, 6.0, 1.0))
    config = StudyConfig(dataset=f"parquet:{shop}", encoder="toyshop-clip")
    StudyCommand(config, dry_run=True, given=("dataset", "encoder", "dry_run")).run()
    assert capsys.readouterr().out.startswith("Plan of my_shop:")
    assert list(tmp_path.iterdir()) == []
