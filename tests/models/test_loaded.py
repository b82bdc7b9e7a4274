"""A loaded model: recommendations, new users, new items."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import perpeft_ray
from perpeft_ray.errors import InputError
from perpeft_ray.models.new_items import NewItem
from perpeft_ray.models.trained import item_embeddings, open_trained
from tests.models.conftest import GROUPS

TITLE = "a red lamp of oak"


@pytest.fixture
def model(exported):
    return perpeft_ray.load(exported)


def test_recommendations_are_the_best_scores(model):
    """Against a plain sort of all scores."""
    history = ["i3", "i7", "i3"]
    scores = model.scores([model.indices(history)])[0].numpy()
    order = [i for i in np.argsort(-scores, kind="stable") if model.item_ids[i] not in history]
    best = model.recommend(history, 5)
    assert [item.item_id for item in best] == [model.item_ids[i] for i in order[:5]]
    assert [item.title for item in best] == [model.titles[i] for i in order[:5]]
    assert [item.score for item in best] == pytest.approx(scores[order[:5]].tolist())


def test_seen_items_are_excluded_unless_asked_for(model):
    everything = {item.item_id for item in model.recommend(["i3"], 1000, exclude_seen=False)}
    assert everything == set(model.item_ids)
    assert {item.item_id for item in model.recommend(["i3"], 1000)} == everything - {"i3"}


def test_only_the_latest_items_and_their_order_count(model):
    latest = [f"i{n}" for n in range(model.config.trial.sequence_length)]
    alone = model.scores([model.indices(latest)])
    assert torch.equal(alone, model.scores([model.indices(["i20", "i21", *latest])]))
    assert not torch.equal(alone, model.scores([model.indices(latest[::-1])]))


def test_many_histories_give_the_same_as_one_by_one(model):
    rng = np.random.default_rng(0)
    histories = [rng.integers(1, 31, size=rng.integers(1, 13)) for _ in range(50)]
    together = model.top_items(histories, 7)
    assert len(set(together.groups.tolist())) > 1
    for row, history in enumerate(histories):
        ids = [model.item_ids[item - 1] for item in history]
        alone = model.recommend(ids, 7)
        assert [model.item_ids[i - 1] for i in together.items[row]] == [a.item_id for a in alone]
        assert model.group_of(ids) == together.groups[row]


@pytest.mark.parametrize(
    ("history", "k", "message"),
    [
        (["i3", "nothing"], 5, "no item 'nothing' in .*; for example 'i0'"),
        ("i3", 5, "`history` must be a list of item ids, but is the text 'i3'"),
        ([], 5, "`history` must have at least one item"),
        (["i3"], 0, "`k` must be a whole number of at least 1, but is 0"),
        (["i3"], True, "`k` must be a whole number of at least 1, but is True"),
        (["i3"], 2.5, r"`k` must be a whole number of at least 1, but is 2\.5"),
    ],
)
def test_bad_input_is_refused(model, history, k, message):
    with pytest.raises(InputError, match=message):
        model.recommend(history, k)


def test_k_may_be_a_whole_number_of_numpy(model):
    assert model.recommend(["i3"], np.int64(2)) == model.recommend(["i3"], 2)


@pytest.mark.parametrize("variant", ["lora", "iisan"])
def test_a_new_item_is_embedded_as_in_training(study_folder, export, shop, variant):
    """An item of the catalogue, given again as a new one: its embedding without the id's part."""
    model = perpeft_ray.load(export("perpeft", variant))
    trial = open_trained(study_folder, model.config.trial_id)
    ids = trial.model.backbone.item_embedding.weight.detach()
    number = 5
    new = model.embed_item(model.titles[number], shop / "images" / f"{number}.png")
    assert new.shape == (GROUPS, trial.config.hidden_units)
    for group in range(GROUPS):
        whole = item_embeddings(trial, group)[number + 1]
        torch.testing.assert_close(new[group] + ids[number + 1], whole, atol=1e-5, rtol=1e-5)
    without_title = model.embed_item(None, shop / "images" / f"{number}.png")
    assert not torch.allclose(without_title, new, atol=1e-3)


def test_added_items_are_recommended_with_the_score_of_their_embedding(model, study_folder):
    trial = open_trained(study_folder, model.config.trial_id)
    history = ["i3", "i5"]
    before = {item.item_id: item.score for item in model.recommend(history, 1000)}
    new = model.embed_item(TITLE, None)
    model.add_items([NewItem("new", TITLE, None), NewItem("other", "a blue chair", None)])
    after = {item.item_id: item.score for item in model.recommend(history, 1000)}
    assert after.keys() - before.keys() == {"new", "other"}
    assert all(after[item] == pytest.approx(score, abs=1e-5) for item, score in before.items())
    group = model.group_of(history)
    inputs = np.zeros((1, model.config.trial.sequence_length), dtype=np.int64)
    inputs[0, -2:] = model.indices(history)
    state = trial.model.states(inputs, item_embeddings(trial, group))[0]
    assert after["new"] == pytest.approx(float(new[group] @ state), abs=1e-4)


def test_added_items_can_be_part_of_a_history(model):
    model.add_items([NewItem("new", TITLE, None)])
    assert "new" not in {item.item_id for item in model.recommend(["i3", "new"], 1000)}


@pytest.mark.parametrize("ids", [["i3"], ["twice", "twice"]])
def test_a_known_id_is_refused(model, ids):
    with pytest.raises(InputError, match=f"a new id, but '{ids[0]}' is known"):
        model.add_items([NewItem(item_id, TITLE, None) for item_id in ids])


def test_adding_many_items_compares_no_id_with_all_others(model, monkeypatch):
    count = 3000
    compared = 0

    class Id(str):
        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    none = torch.zeros(len(model._embeddings), count, model.config.trial.hidden_units)
    monkeypatch.setattr(model, "_embed_new", lambda items: none)
    model.add_items([NewItem(Id(f"new{at}"), TITLE, None) for at in range(count)])
    assert compared < 10 * count


def broken_image(form: str, folder: Path) -> Any:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = folder / "whole.jpg"
    Image.fromarray(noise).save(whole)
    (folder / "cut.jpg").write_bytes(whole.read_bytes()[:1500])
    (folder / "page.jpg").write_bytes(b"<html>404</html>")
    (folder / "empty.jpg").write_bytes(b"")
    if form == "closed":
        image = Image.open(whole)
        image.close()
        return image
    return Image.open(folder / "cut.jpg") if form == "open" else folder / form


@pytest.mark.parametrize("form", ["cut.jpg", "page.jpg", "empty.jpg", "open", "closed"])
def test_a_broken_image_counts_as_missing(model, tmp_path, form):
    """With a title it is the item without image; without one the item is refused."""
    image = broken_image(form, tmp_path)
    for title in (None, " \t "):
        with pytest.raises(
            InputError,
            match=r"item 'new' must have a title or an image that can be read for this model, but "
            "has an image that cannot be: ",
        ):
            model.add_items([NewItem("new", title, image)])
    assert "new" not in model
    assert torch.equal(model.embed_item(TITLE, image), model.embed_item(TITLE, None))


def test_an_item_without_content_is_refused(model):
    with pytest.raises(InputError, match=r"must have a title or an image .*, but has neither"):
        model.embed_item("  ", None)


@pytest.mark.parametrize("path", [Path("no.png"), ".", "", "x" * 5000, "a\0b"])
def test_a_missing_image_file_is_refused(model, path):
    with pytest.raises(InputError, match="`image` of item 'new' must be a file, but is"):
        model.embed_item(TITLE, path)


def test_an_image_is_the_same_by_text_path_and_pillow(model, tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 32, 3), dtype=np.uint8)
    file = tmp_path / "turned.tiff"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).convert("CMYK").save(file, exif=exif)
    monkeypatch.chdir(tmp_path)
    by_path = model.embed_item(None, file)
    with Image.open(file) as opened:
        for form in (str(file), file.name, opened):
            torch.testing.assert_close(model.embed_item(None, form), by_path)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (
            NewItem("new", float("nan"), None),
            "`title` of item 'new' must be text or None, but is nan",
        ),
        (NewItem("new", b"lamp", None), "`title` of item 'new' must be text or None"),
        (NewItem(3, TITLE, None), "`item_id` of a new item must be text, but is 3"),
        (NewItem("new", TITLE, b"png"), "`image` of item 'new' must be a path, .* but is a bytes"),
        (NewItem("new", TITLE, np.zeros((8, 8, 3))), "`image` .* but is a ndarray"),
        (("new", TITLE, None), "a new item must be a NewItem, but is"),
    ],
)
def test_a_value_of_a_wrong_type_is_refused_and_adds_nothing(model, item, message):
    before = len(model.item_ids)
    with pytest.raises(InputError, match=message):
        model.add_items([NewItem("good", TITLE, None), item])
    assert len(model.item_ids) == before


@pytest.mark.parametrize(
    ("method", "title", "image"), [("without_text", TITLE, None), ("without_image", None, "5.png")]
)
def test_content_that_a_model_does_not_read_is_none(export, shop, method, title, image):
    model = perpeft_ray.load(export(method))
    item = NewItem("new", title, image and shop / "images" / image)
    with pytest.raises(
        InputError, match=r"must have (a title|an image).* for this model, but has none"
    ):
        model.add_items([item])
    model.add_items([item], without_content=True)
    assert "new" in {found.item_id for found in model.recommend(["i3"], 1000)}


def test_a_model_of_ids_embeds_a_new_item_as_zero(export):
    model = perpeft_ray.load(export("without_mm", None))
    assert model.embed_item(TITLE, None).abs().max() == 0


def test_another_encoder_is_refused(export, tmp_path):
    shutil.copytree(export(with_encoder=True), tmp_path / "model")
    file = tmp_path / "model" / "encoder" / "config.json"
    file.write_text(file.read_text() + "\n")
    with pytest.raises(InputError, match="must be the one that the model was trained with"):
        perpeft_ray.load(tmp_path / "model").embed_item(TITLE, None)
