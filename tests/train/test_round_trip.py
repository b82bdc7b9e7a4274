"""From the authors' archive to a study: zip of zips, folder, split, store, trial; and as typed."""

from __future__ import annotations

import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from perpeft_ray.data.interactions import load_folder
from perpeft_ray.data.split import split_dataset
from perpeft_ray.train.outcome import EpochRecord
from perpeft_ray.train.trial import run_trial
from perpeft_ray.train.workspace import open_catalogue, open_split, prepare
from tests.plain_batch import plain_batch

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def archive(small_folder, tmp_path_factory):
    """The small shop in the form of the release: `data/arts.zip` in a zip."""
    folder = tmp_path_factory.mktemp("release")
    interactions = pd.read_parquet(small_folder / "interactions.parquet")
    items = pd.read_parquet(small_folder / "items.parquet")
    numbers = {item_id: number for number, item_id in enumerate(items["item_id"], start=1)}
    users = pd.factorize(interactions["user_id"])[0] + 1
    lines = [
        f"{user} {numbers[item]}\n"
        for user, item in zip(users, interactions["item_id"], strict=True)
    ]
    titles = items.set_index("item_id")["title"].dropna().to_dict()
    with zipfile.ZipFile(folder / "arts.zip", "w") as inner:
        inner.writestr("arts/arts_final.txt", "".join(lines))
        ids = {number: item_id for item_id, number in numbers.items()}
        inner.writestr("arts/arts_item2id_final.pickle", pickle.dumps(ids))
        inner.writestr("arts/arts_texts_final.pickle", pickle.dumps(titles))
        for item_id, image in items.set_index("item_id")["image"].dropna().items():
            with inner.open(f"arts/arts_images/{item_id}.jpg", "w") as file:
                Image.open(small_folder / image).save(file, "JPEG")
    with zipfile.ZipFile(folder / "release.zip", "w") as outer:
        outer.write(folder / "arts.zip", "data/arts.zip")
    (folder / "arts.zip").unlink()
    return folder / "release.zip"


def test_a_trial_on_the_archive(archive, small_folder, make_trial, tmp_path):
    workspace = prepare(f"release:{archive}#arts", "toyshop-clip", tmp_path / "cache")
    expected = split_dataset(load_folder(small_folder, ""))
    split = open_split(workspace)
    assert split.item_ids.tolist() == expected.item_ids.tolist()
    for name in ("valid_item", "test_item"):
        np.testing.assert_array_equal(getattr(split, name), getattr(expected, name))
    np.testing.assert_array_equal(split.train.items, expected.train.items)
    batch = plain_batch(open_catalogue(workspace), np.arange(1, 31))
    assert batch.has_title.tolist() == [False] + [True] * 29
    assert batch.has_image.tolist() == [True] * 29 + [False]

    epochs: list[EpochRecord] = []
    outcome = run_trial(make_trial(), workspace, epochs.append, test=True)
    assert [epoch.stage for epoch in epochs] == [1, 3]
    assert all(np.isfinite(epoch.loss) for epoch in epochs)
    assert outcome.users_evaluated == len(expected.evaluated("test"))
    assert outcome.test is not None
    assert 0 <= outcome.test.ndcg_at_20 <= outcome.test.hr_at_20 <= 1
    assert (outcome.users.test_rank >= 0).sum() == len(expected.evaluated("test"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_study_on_the_archive_as_typed(archive, tmp_path):
    """`perpeft prepare release`, then the main job on its folder; then on the archive itself."""
    perpeft = [sys.executable, "-c", "from perpeft_ray.cli import main; main()"]
    prepare_it = ["prepare", "release", str(archive), "--name", "arts", "--out", "data/arts"]
    subprocess.run([*perpeft, *prepare_it], cwd=tmp_path, check=True, timeout=120)
    settings = (
        "--search.trials 1 --search.no-asha --train.epochs 1 --train.personal-epochs 1 "
        "--train.lr 1e-3 --train.batch-size 8 --peft.variant iisan --grouping.groups 2 "
        "--loss.conditioning-weight 0.5 --methods without_mm perpeft"
    )
    for dataset in ("parquet:data/arts", f"release:{archive}#arts"):
        study = ["study", "--dataset", dataset, "--study", dataset.partition(":")[0]]
        subprocess.run([*perpeft, *study, *settings.split()], cwd=tmp_path, check=True, timeout=400)
    tables = [
        pd.read_parquet(tmp_path / "results" / name / "trials").query("phase == 'ablation'")
        for name in ("parquet", "release")
    ]
    for table in tables:
        assert set(table["status"]) == {"COMPLETE"}
        assert set(table["method"]) == {"without_mm", "perpeft"}
    metrics = [table.set_index("method")["test_ndcg_at_20"].sort_index() for table in tables]
    pd.testing.assert_series_equal(*metrics)
