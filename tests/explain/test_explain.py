"""Explanations against plain transformers, the study's own ranks and slow reckoning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPModel

from perpeft_ray.cli.main import perpeft
from perpeft_ray.data.sources import open_dataset
from perpeft_ray.encoder.attention import LastAttention
from perpeft_ray.encoder.foundation import load_towers
from perpeft_ray.encoder.source import TOYSHOP_CLIP
from perpeft_ray.errors import InputError
from perpeft_ray.explain.item import explain_item
from perpeft_ray.explain.user import explain_user
from perpeft_ray.models.trained import item_embedding, open_trained
from perpeft_ray.results.folder import StudyFolder
from perpeft_ray.train.workspace import open_catalogue, prepare
from tests.models.conftest import GROUPS, FinishedTrial


def test_attention_of_untrained_towers_is_that_of_transformers(shop: Path, tmp_path: Path) -> None:
    workspace = prepare(f"parquet:{shop}", "toyshop-clip", tmp_path)
    batch = open_catalogue(workspace).batch(np.array([3, 4, 5]))
    towers = load_towers("toyshop-clip", "float32", torch.device("cpu"))
    with torch.no_grad():
        text, image = LastAttention(towers)(batch)
    plain = CLIPModel.from_pretrained(TOYSHOP_CLIP, attn_implementation="eager").eval()
    pixels = batch.pixels * towers.pixel_scale + towers.pixel_shift
    assert text is not None
    assert image is not None
    with torch.no_grad():
        for row in range(3):
            length = int(batch.attention_mask[row].sum())
            ids = batch.token_ids[row : row + 1, :length]
            out = plain.text_model(input_ids=ids, output_attentions=True)
            from_last = out.attentions[-1][0, :, -1].mean(0)
            torch.testing.assert_close(text[row, :length], from_last)
            assert (text[row, length:] == 0).all()
            seen = plain.vision_model(pixels[row : row + 1], output_attentions=True)
            from_class = seen.attentions[-1][0, :, 0, 1:].mean(0)
            torch.testing.assert_close(image[row], from_class / from_class.sum())


def test_an_item_under_the_groups_that_differ_most(
    study_folder: StudyFolder, finished_trial: FinishedTrial
) -> None:
    trial = open_trained(study_folder, finished_trial("perpeft", "lora"))
    found = explain_item(trial, 5)
    own = [item_embedding(trial, 5, group) for group in range(GROUPS)]
    pairs = [(a, b) for a in range(GROUPS) for b in range(a + 1, GROUPS)]
    cosines = {(a, b): float(F.cosine_similarity(own[a], own[b], dim=0)) for a, b in pairs}
    assert tuple(view.group for view in found.views) == min(cosines, key=lambda p: cosines[p])
    assert found.cosine == pytest.approx(min(cosines.values()), abs=1e-6)
    for view in found.views:
        assert view.tokens is not None
        assert view.patches is not None
        assert view.tokens.sum() == pytest.approx(1.0, abs=1e-5)
        assert view.patches.shape == (3, 3)  # 24 pixels in patches of 8
        assert view.users == (trial.modules_of_users() == view.group).sum()
        # The nearest by brute force.
        rows = [item_embedding(trial, item, view.group) for item in range(1, 31)]
        mine = rows[4]
        scores = [float(F.cosine_similarity(row, mine, dim=0)) for row in rows]
        order = [i + 1 for i in np.argsort(scores)[::-1] if i != 4]
        assert [item for item, _ in view.neighbours] == order[:5]
    first, second = found.views
    assert not np.allclose(first.tokens, second.tokens)  # the modules were trained apart


def test_what_cannot_be_explained_is_told(
    study_folder: StudyFolder, finished_trial: FinishedTrial
) -> None:
    one = open_trained(study_folder, finished_trial("global", "lora"))
    with pytest.raises(InputError, match="must have a module for each of several groups"):
        explain_item(one, 5)
    with pytest.raises(InputError, match="must be of a method with a module a group"):
        explain_user(study_folder, one, 0)
    trial = open_trained(study_folder, finished_trial("perpeft", "lora"))
    with pytest.raises(InputError, match="`groups` must be between 0 and 2, but has 3"):
        explain_item(trial, 5, (0, 3))
    with pytest.raises(InputError, match="`other` must be between 0 and 2, but is 7"):
        explain_user(study_folder, trial, 0, other=7)


def test_iisan_leaves_attention_as_it_is_and_says_so(
    study_folder: StudyFolder, finished_trial: FinishedTrial
) -> None:
    trial = open_trained(study_folder, finished_trial("perpeft", "iisan"))
    found = explain_item(trial, 5, (0, 2), neighbours=0)
    assert not found.has_attention
    assert [view.tokens for view in found.views] == [None, None]
    assert [view.neighbours for view in found.views] == [[], []]


def test_a_user_under_three_modules(
    study_folder: StudyFolder, finished_trial: FinishedTrial
) -> None:
    trial_id = finished_trial("perpeft", "lora")
    of_global = finished_trial("global", "lora")
    trial = open_trained(study_folder, trial_id)
    users = study_folder.users_of(trial_id)
    ranks_of_global = study_folder.users_of(of_global).test_rank
    for user in np.flatnonzero(users.test_rank.notna())[:5]:
        found = explain_user(study_folder, trial, int(user), k=30)
        own, common, other = found.lists
        assert own.title == f"own group {found.group}" == f"own group {users.test_group[user]:.0f}"
        assert common.title == "global module"
        assert other.title != own.title
        assert own.test_rank == users.test_rank[user]
        assert common.test_rank == ranks_of_global[user]
        for one in found.lists:
            names = [item for item, _ in one.items]
            assert set(found.history).isdisjoint(names)
            if found.test_item not in found.history:
                assert names.index(found.test_item) <= one.test_rank  # equal but for ties
            scores = [score for _, score in one.items]
            assert scores == sorted(scores, reverse=True)


def test_commands_print_and_write_pages(
    study_folder: StudyFolder,
    finished_trial: FinishedTrial,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    trial_id = finished_trial("perpeft", "lora")
    path = str(study_folder.path)
    perpeft(["explain", "item", path, "i5", "--trial", trial_id, "--groups", "0", "2"])
    printed = capsys.readouterr().out
    page = study_folder.path / "explain" / "item-i5.html"
    assert f"page: {page}" in printed
    assert ["attention,", "%", "group", "0", "group", "2"] in map(str.split, printed.splitlines())
    text = page.read_text()
    assert text.count("data:image/png;base64,") >= 3  # the image, and it under two groups
    assert "http" not in text.split("</style>")[1]

    perpeft(["explain", "user", path, "u9", "--out", str(tmp_path / "user.html")])
    printed = capsys.readouterr().out
    assert "own group" in printed
    assert "global module" in printed
    assert "<h1>User u9</h1>" in (tmp_path / "user.html").read_text()

    for arguments, message in (
        (["item", path, "nothing"], "`item` must be the id of one in the data of"),
        (["user", path, "nobody"], "`user` must be the id of one in the data of"),
        (["thing", path, "i5"], "must be followed by one of item, user, but is by 'thing'"),
    ):
        with pytest.raises(InputError, match=message):
            perpeft(["explain", *arguments])


def test_titles_are_text_on_the_page(
    study_folder: StudyFolder, finished_trial: FinishedTrial, tmp_path: Path
) -> None:
    from dataclasses import replace

    from perpeft_ray.explain.pages import write_item_page

    trial = open_trained(study_folder, finished_trial("perpeft", "lora"))
    dataset = open_dataset(study_folder.config.dataset, study_folder.path.parent / ".cache")
    items = dataset.items.copy()
    items["title"] = pd.Series(["<script>alert(1)</script>"] * len(items), dtype=items.title.dtype)
    write_item_page(
        explain_item(trial, 5), trial, replace(dataset, items=items), tmp_path / "page.html"
    )
    assert "<script>" not in (tmp_path / "page.html").read_text()
