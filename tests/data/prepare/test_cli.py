"""`perpeft prepare`: what it prints, and bad input in one line."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from unittest.mock import Mock

import pytest

from perpeft_ray.cli import run
from perpeft_ray.cli.main import perpeft
from perpeft_ray.data.interactions import load_folder
from perpeft_ray.data.prepare.database import Database
from perpeft_ray.errors import InputError
from tests.data.prepare.conftest import jpeg
from tests.data.prepare.test_amazon2023 import CATEGORY, drawn, meta, picture, review, write_raw
from tests.data.prepare.test_release import write_release


def test_amazon2023_prints_table_1_beside_the_paper(tmp_path, capsys):
    raw = write_raw(tmp_path / "raw", *drawn())
    out = tmp_path / "out"
    perpeft(f"prepare amazon2023 --raw {raw} --category arts --out {out} --core 2".split())
    shown = capsys.readouterr()
    printed = shown.out
    dataset = load_folder(out, "")
    users = dataset.interactions["user_id"].nunique()
    length = len(dataset.interactions) / users
    density = length / len(dataset.items)
    assert f"│ here  │ {users:6} │ {len(dataset.items):6} │" in printed
    assert f"{length:.4f} │  {density:.4f} │" in printed
    assert "│ paper │ 24,511 │ 18,884 │         9.4328 │  0.0005 │" in printed
    assert shown.err.endswith(f" s; next: perpeft study --dataset parquet:{out}\n")
    assert printed.endswith(f"parquet:{out}\n")


def test_release_and_parquet(tmp_path, capsys):
    write_release(tmp_path / "arts")
    first, second = tmp_path / "first", tmp_path / "second"
    perpeft(["prepare", "release", str(tmp_path / "arts"), "--name", "arts", "--out", str(first)])
    printed = capsys.readouterr().out
    assert "7 interactions of 2 users with 4 items" in printed
    assert "1 repeat of an item by a user" in printed
    assert re.sub(r"\s", "", f"2 images failed, listed in {first}/images_failed.csv") in re.sub(
        r"\s", "", printed
    )
    perpeft(["prepare", "parquet", str(first), "--out", str(second)])
    printed = capsys.readouterr().out
    assert "0 items with an id that was there before left out" in printed
    fingerprints = {load_folder(folder, "").fingerprint for folder in (first, second)}
    assert len(fingerprints) == 1


@pytest.mark.parametrize(
    ("users", "items", "step"),
    [
        ("uuuvv", "abcab", "missing: two users with at least 3 interactions each, to train, "),
        ("uuuvvv", "aaaaaa", "missing: a second item\n"),
        ("uuuvvv", "abcabc", "next: perpeft study "),
    ],
)
def test_next_step_is_a_study_only_if_one_can_run(tmp_path, capsys, users, items, step):
    rows = [
        f"{user},{item},{at}\n" for at, (user, item) in enumerate(zip(users, items, strict=True))
    ]
    (tmp_path / "orders.csv").write_text("user,item,time\n" + "".join(rows))
    perpeft(f"prepare table --interactions {tmp_path}/orders.csv --out {tmp_path}/out".split())
    assert f" s; {step}" in capsys.readouterr().err


def test_progress_has_one_line_per_step(tmp_path, capsys, web):
    """And none per request."""
    web.statuses = {"/a.jpg": [503, 503]}
    web.files = {"/a.jpg": jpeg(1)}
    metas = [meta("B1", "Yarn", [picture(f"{web.address}/a.jpg")])]
    raw = write_raw(tmp_path / "raw", [review("U", "B1", 1)], metas)
    options = f"--category {CATEGORY} --out {tmp_path}/out --core 1 --images.first-pause 0.01"
    perpeft(f"prepare amazon2023 --raw {raw} {options}".split())
    lines = capsys.readouterr().err.splitlines()
    steps = [line for line in lines if line.startswith("making table ")]
    assert steps == [f"making table {name}" for name in ("reviews", "items", "users", "firsts")]
    assert "1-core: 1 row" in lines
    assert not any("a.jpg" in line for line in lines)
    assert "; missing: two users with" in lines[-1]
    assert web.requests["/a.jpg"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "nothing"),
        (["parquet", ".", "--out", "x", "--cor", "3"], "unknown field `cor`"),
        (["release", "x.zip", "--out", "x"], "--name"),
        (["amazon2023", "--raw", "/none", "--category", "arts", "--out", "x"], "`raw` must be"),
    ],
)
def test_bad_input_is_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        perpeft(["prepare", *arguments])
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--out {at}/orders.csv/x", "{at}/orders.csv must be a place that can be "),
        ("--out {at}/x --memory-gb nan", "`memory_gb` must be a positive number, but is nan"),
    ],
)
def test_what_cannot_be_written_is_bad_input(tmp_path, options, message, capsys):
    (tmp_path / "orders.csv").write_text("user,item,time\nu,a,1\nu,b,2\nu,c,3\n")
    table = f"prepare table --interactions {tmp_path}/orders.csv {options.format(at=tmp_path)}"
    with pytest.raises(SystemExit, match=r"^2$"):
        run(lambda: perpeft(table.split()))
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {message.format(at=tmp_path)}")
    assert shown.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["orders.csv"]


def test_a_full_disk_keeps_the_work_for_a_rerun(tmp_path, monkeypatch, capsys):
    (tmp_path / "orders.csv").write_text("user,item,time\nu,a,1\nu,b,2\nu,c,3\n")
    table = f"prepare table --interactions {tmp_path}/orders.csv --out {tmp_path}/out"
    with monkeypatch.context() as full:
        error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        full.setattr(Database, "write_parquet", Mock(side_effect=error))
        with pytest.raises(SystemExit, match=r"^1$"):
            run(lambda: perpeft(table.split()))
    shown = capsys.readouterr().err.splitlines()
    assert shown == ["error: no room on the disk; make room, then rerun the same command to resume"]
    run(lambda: perpeft(table.split()))
    assert {file.name for file in tmp_path.iterdir()} == {"orders.csv", "out"}
