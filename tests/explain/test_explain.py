"""Explanations against plain transformers, the study's own ranks and brute force."""

from __future__ import annotations

import base64
import io
import itertools
import re
import unicodedata
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoTokenizer, CLIPModel

from perpeft_ray.cli.explain import print_item
from perpeft_ray.cli.main import perpeft
from perpeft_ray.encoder.attention import LastAttention
from perpeft_ray.encoder.foundation import load_towers
from perpeft_ray.encoder.preprocess import FoundationPreprocessor
from perpeft_ray.encoder.source import TOYSHOP_CLIP
from perpeft_ray.errors import InputError
from perpeft_ray.explain.item import explain_item
from perpeft_ray.explain.pages import page_name, thumbnail, write_item_page
from perpeft_ray.explain.user import explain_user
from perpeft_ray.explain.words import title_words
from perpeft_ray.models.trained import item_embedding, open_trained
from perpeft_ray.train.workspace import open_catalogue, prepare
from tests.encoder.tiny_models import write_tiny_model
from tests.models.conftest import GROUPS
from tests.plain_batch import plain_batch


def test_attention_of_untrained_towers_is_that_of_transformers(shop, tmp_path):
    workspace = prepare(f"parquet:{shop}", "toyshop-clip", tmp_path)
    batch = plain_batch(open_catalogue(workspace), np.array([3, 4, 5]))
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


@pytest.fixture
def trial(study_folder, finished_trial):
    return open_trained(study_folder, finished_trial("perpeft", "lora"))


def with_groups(trial, groups):
    """The trial as if its users were in these groups."""
    return replace(trial, grouping=replace(trial.grouping, valid=groups, test=groups))


def test_an_item_under_the_groups_that_differ_most(trial):
    found = explain_item(trial, 5)
    own = [item_embedding(trial, 5, group) for group in range(GROUPS)]
    pairs = itertools.combinations(range(GROUPS), 2)
    cosines = {(a, b): float(F.cosine_similarity(own[a], own[b], dim=0)) for a, b in pairs}
    assert tuple(view.group for view in found.views) == min(cosines, key=lambda p: cosines[p])
    assert found.cosine == pytest.approx(min(cosines.values()), abs=1e-6)
    for view in found.views:
        assert view.words is not None
        assert view.patches is not None
        assert view.words.sum() == pytest.approx(1.0, abs=1e-5)
        assert view.patches.shape == (3, 3)  # 24 pixels in patches of 8
        assert view.users == (trial.modules_of_users() == view.group).sum()
    first, second = found.views
    assert not np.allclose(first.words, second.words)  # the modules were trained apart


def test_neighbours_are_the_nearest_items(trial):
    for view in explain_item(trial, 5).views:
        rows = torch.stack([item_embedding(trial, item, view.group) for item in range(1, 31)])
        scores = F.cosine_similarity(rows, rows[4], dim=1)
        order = [i + 1 for i in scores.argsort(descending=True).tolist() if i != 4]
        assert [item for item, _ in view.neighbours] == order[:5]


def test_a_trial_with_one_module_is_refused(study_folder, finished_trial):
    one = open_trained(study_folder, finished_trial("global", "lora"))
    with pytest.raises(InputError, match="must have a module for each of several groups"):
        explain_item(one, 5)
    with pytest.raises(InputError, match="must be of a method with one module per group"):
        explain_user(study_folder, one, 0)


def test_an_unknown_group_is_refused(study_folder, trial):
    with pytest.raises(InputError, match="`groups` must be between 0 and 2, but is 3"):
        explain_item(trial, 5, (0, 3))
    with pytest.raises(InputError, match="`other` must be between 0 and 2, but is 7"):
        explain_user(study_folder, trial, 0, other=7)


def test_a_user_under_three_modules(study_folder, finished_trial, trial):
    users = study_folder.users_of(trial.trial_id)
    ranks_of_global = study_folder.users_of(finished_trial("global", "lora")).test_rank
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


def test_the_item_command_prints_attention_and_writes_a_page(study_folder, trial, capsys):
    command = ["explain", "item", str(study_folder.path), "i5", "--trial", trial.trial_id]
    perpeft([*command, "--groups", "0", "2"])
    printed = capsys.readouterr().out
    page = study_folder.path / "explain" / "item-i5.html"
    assert f"page: {page}" in printed
    assert ["attention,", "%", "group", "0", "group", "2"] in map(str.split, printed.splitlines())
    text = page.read_text()
    assert text.count("data:image/png;base64,") >= 3  # the image, and it under two groups
    assert "http" not in text.split("</style>")[1]


def test_the_user_command_prints_lists_and_writes_a_page(study_folder, trial, capsys, tmp_path):
    page = tmp_path / "user.html"
    perpeft(["explain", "user", str(study_folder.path), "u9", "--out", str(page)])
    printed = capsys.readouterr().out
    assert "own group" in printed
    assert "global module" in printed
    assert "<h1>User u9</h1>" in page.read_text()


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("item", "nothing", "no item .nothing. in the data of .*; for example .i0."),
        ("user", "nobody", "no user .nobody. in the data of .*; for example .u0."),
        ("thing", "i5", "must be followed by one of item, user, but is by 'thing'"),
    ],
)
def test_an_unknown_id_or_kind_is_refused(study_folder, trial, kind, name, message):
    with pytest.raises(InputError, match=message):
        perpeft(["explain", kind, str(study_folder.path), name])


@pytest.mark.parametrize(
    "ids",
    [
        ["a/b", "a_b", "a.b", "a b", "A_B", "a_B"],
        ["x" * 250, "x" * 251, "X" * 250, "x" * 60, "x" * 61],
        ["", ".", "..", "/", "\\", "\0", "a\0b", "a\0c", "-", "con", "CON", "nul."],
        ["é", "e\u0301", "E\u0301", "ß", "ss", "日本", "日本語", "\ud800", "😀" * 100],
    ],
)
def test_every_id_has_its_own_page_name_on_any_file_system(ids, tmp_path):
    names = [page_name(kind, name) for kind in ("item", "user") for name in ids]
    assert len({name.lower() for name in names}) == 2 * len(ids)
    for name in names:
        assert re.fullmatch(r"(item|user)-[a-z0-9_-]*(\.[0-9a-f]{32})?\.html", name)
        assert len(name) <= 100
        (tmp_path / name).write_text("")
    assert page_name("user", "u_9-a") == "user-u_9-a.html"


def test_an_image_that_cannot_be_read_has_a_placeholder(tmp_path):
    Image.new("RGB", (320, 160), "red").save(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    broken = {"cut.png": whole[:200], "page.jpg": b"<html>404</html>", "empty.png": b""}
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
    shown = {thumbnail(tmp_path, name) for name in (*broken, "gone.png")}
    assert len(shown) == 1
    assert thumbnail(tmp_path, None) is None
    (placeholder,) = shown
    good = thumbnail(tmp_path, "good.png")
    assert good is not None
    assert placeholder is not None
    assert good != placeholder
    for uri, size in ((good, (160, 80)), (placeholder, (160, 160))):
        png = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
        assert Image.open(io.BytesIO(png)).size == size


@pytest.mark.parametrize(
    ("title", "words"),
    [
        ("Café crème  naïve", ["Café", "crème", "naïve"]),
        ("紅色 oak", ["紅", "色", "oak"]),
        ("e\u0301tage über-groß!", ["e\u0301tage", "über-groß!"]),
        ("🪑 chair", ["🪑", "chair"]),
        ("مصباح صغير", ["مصباح", "صغير"]),
        (" red\tlamp ", ["red", "lamp"]),
    ],
)
def test_a_title_is_shown_in_its_own_words(title, words):
    tokenizer = AutoTokenizer.from_pretrained(TOYSHOP_CLIP)
    ids = tokenizer(title)["input_ids"]
    found = title_words("toyshop-clip", title, ids)
    assert found.words == ["<|startoftext|>", *words, "<|endoftext|>"]
    # Every token belongs to the word that its bytes are a part of.
    for number, word in enumerate(words, start=1):
        own = [token for token, at in zip(ids, found.of_token, strict=True) if at == number]
        plain = unicodedata.normalize("NFC", word).lower()
        assert tokenizer.decode(own).replace(" ", "") == plain
    assert found.sums(np.ones(len(ids), np.float32)).sum() == len(ids)


@pytest.mark.parametrize("family", ["text", "siglip"])
def test_padding_is_one_word_for_every_tokenizer(family, tmp_path):
    encoder = write_tiny_model(family, tmp_path / "encoder")
    preprocessor = FoundationPreprocessor(encoder)
    (ids,) = preprocessor.tokens(["red oak lamp"])
    ids = ids + [preprocessor.pad_token_id] * 3
    found = title_words(encoder, "red oak lamp", ids)
    assert [word for word in found.words if word in ("red", "oak", "lamp")] == [
        "red",
        "oak",
        "lamp",
    ]
    assert len(found.words) <= 6
    assert (np.diff(found.of_token) >= 0).all()


@pytest.mark.parametrize(
    ("in_group_2", "others", "shown"), [(0, [], (0,)), (5, ["group 2"], (0, 2))]
)
def test_a_group_without_users_is_not_compared(study_folder, trial, in_group_2, others, shown):
    """All other users are in group 0. NumPy's warnings are errors here."""
    groups = np.where(np.arange(len(trial.grouping.valid)) < in_group_2, 2, 0).astype(np.int32)
    changed = with_groups(trial, groups)
    with warnings.catch_warnings(action="error"):
        found, item = explain_user(study_folder, changed, 9), explain_item(changed, 5)
    assert [one.title for one in found.lists][2:] == others
    assert tuple(view.group for view in item.views) == shown
    assert (item.cosine is None) == (len(shown) == 1)
    with pytest.raises(InputError, match=r"must be a group with users, one of 0.* is 1"):
        explain_user(study_folder, changed, 9, other=1)
    with pytest.raises(InputError, match="`groups` must be a group with users"):
        explain_item(changed, 5, (0, 1))


def test_an_item_that_only_one_group_sees_is_printed_and_has_a_page(trial, tmp_path, capsys):
    changed = with_groups(trial, np.zeros_like(trial.grouping.valid))
    found = explain_item(changed, 5)
    print_item(found, changed.dataset)
    assert "seen by group 0 only: no other group has users" in capsys.readouterr().out
    write_item_page(found, changed, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "no other group has users" in text
    assert "<h2>Group 0</h2>" in text
    assert "the two groups" not in text


@pytest.mark.parametrize(("variant", "has_attention"), [("lora", True), ("iisan", False)])
def test_a_page_mentions_attention_only_if_it_shows_some(
    study_folder, finished_trial, tmp_path, variant, has_attention
):
    trial = open_trained(study_folder, finished_trial("perpeft", variant))
    write_item_page(explain_item(trial, 5, (0, 2), 1), trial, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert ("Attention: last layer" in text) == has_attention
    assert ("leaves their attention as it is" in text) != has_attention


def test_titles_are_escaped_on_the_page(trial, tmp_path):
    items = trial.dataset.items.copy()
    items["title"] = pd.Series(["<script>alert(1)</script>"] * len(items), dtype=items.title.dtype)
    changed = replace(trial, dataset=replace(trial.dataset, items=items))
    write_item_page(explain_item(trial, 5), changed, tmp_path / "page.html")
    assert "<script>" not in (tmp_path / "page.html").read_text()
