"""`perpeft export` and `perpeft recommend` as a user calls them."""

from __future__ import annotations

import shutil

import pytest

import perpeft_ray
from perpeft_ray.cli import run
from perpeft_ray.cli.main import perpeft
from perpeft_ray.errors import InputError


def test_export_takes_the_best_trial_or_the_one_named(
    study_folder, finished_trial, tmp_path, capsys
):
    finished_trial("perpeft", "lora")
    ids = finished_trial("without_mm", None)
    perpeft(["export", str(study_folder.path), "--trial", "best", str(tmp_path / "best")])
    assert perpeft_ray.load(tmp_path / "best").config.trial.method == "perpeft"
    perpeft(["export", str(study_folder.path), "--trial", ids, str(tmp_path / "ids")])
    assert perpeft_ray.load(tmp_path / "ids").config.trial_id == ids
    perpeft(["export", str(study_folder.path), str(tmp_path / "also"), "--method", "without_mm"])
    assert perpeft_ray.load(tmp_path / "also").config.trial_id == ids
    assert f"{ids} exported to {tmp_path / 'also'}" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"study\.json"):
        perpeft(["export", str(tmp_path), str(tmp_path / "out")])
    with pytest.raises(InputError, match="embeddings"):
        perpeft(["export", str(study_folder.path), str(tmp_path / "out"), "--embeddings", "int3"])


def test_recommend_prints_items_with_titles(exported, capsys):
    perpeft(["recommend", str(exported), "--history", "i3", "i5", "-k", "3"])
    out = capsys.readouterr().out
    model = perpeft_ray.load(exported)
    for item in model.recommend(["i3", "i5"], 3):
        assert item.item_id in out
        assert (item.title or "–") in out
    assert f"group {model.group_of(['i3', 'i5'])} of" in out


def test_unknown_items_of_a_history_are_skipped_and_counted(exported, capsys):
    perpeft(["recommend", str(exported), "--history", "i3", "i5", "-k", "3"])
    known = capsys.readouterr().out
    perpeft(["recommend", str(exported), "--history", "gone", "i3", "i5", "", "-k", "3"])
    shown = capsys.readouterr()
    assert shown.err == f"skipped 2 of 4 items, which are not in {exported}\n"
    assert shown.out == known
    with pytest.raises(InputError, match=r"no item 'gone' in .*; for example 'i0'"):
        perpeft(["recommend", str(exported), "--history", "gone", "also"])


@pytest.mark.parametrize(
    ("command", "place"),
    [
        ("export {study} {at}/file/model", "{at}/file"),
        ("explain user {study} u9 --out {at}/file/page.html", "{at}/file"),
        ("explain item {study} i5 --out {at}", "{at}"),
        ("explain item {study} i5", "{study}/explain"),
        ("recommend {model} --users {shop}/interactions.parquet --out {at}/file/x", "{at}/file"),
    ],
)
def test_a_place_that_cannot_be_written_is_one_line(
    study_folder, finished_trial, exported, shop, tmp_path, capsys, command, place
):
    finished_trial("perpeft", "lora")
    (tmp_path / "file").touch()
    study = shutil.copytree(study_folder.path, tmp_path / "study")
    (study / "explain").touch()
    shutil.copytree(study_folder.cache, tmp_path / ".cache")
    places = {"study": study, "at": tmp_path, "shop": shop, "model": exported}
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit, match=r"^2$"):
        run(lambda: perpeft(command.format(**places).split()))
    line = f"error: {place.format(**places)} must be a place that can be read and written, but: "
    (shown,) = capsys.readouterr().err.splitlines()
    assert shown.startswith(line)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "arguments", [[], ["--users", "x"], ["--history", "i1", "--users", "x", "--out", "y"]]
)
def test_one_of_the_two_uses_must_be_chosen(exported, arguments):
    with pytest.raises(InputError, match="either `history` must be given, or `users`"):
        perpeft(["recommend", str(exported), *arguments])
