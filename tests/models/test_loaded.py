"""A loaded model: recommendations, new users, new items."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import perpeft_ray
from perpeft_ray.errors import InputError
from perpeft_ray.models.export import ExportOptions, export_trial
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
    seen = [model.item_ids.index(item) for item in ("i3", "i7")]
    order = [i for i in np.argsort(-scores, kind="stable") if i not in seen]
    best = model.recommend(history, 5)
    assert [item.item_id for item in best] == [model.item_ids[i] for i in order[:5]]
    assert [item.title for item in best] == [model.titles[i] for i in order[:5]]
    assert [item.score for item in best] == pytest.approx(scores[order[:5]].tolist())
    everything = model.recommend(history, 1000, exclude_seen=False)
    assert len(everything) == len(model.item_ids)
    assert {"i3", "i7"} <= {item.item_id for item in everything}
    assert len(model.recommend(history, 1000)) == len(model.item_ids) - 2


def test_only_the_latest_items_and_their_order_count(model):
    length = model.config.trial.sequence_length
    latest = [f"i{n}" for n in range(length)]
    alone = model.scores([model.indices(latest)])
    longer = model.scores([model.indices(["i20", "i21", *latest])])
    assert torch.equal(alone, longer)
    assert not torch.equal(alone, model.scores([model.indices(latest[::-1])]))


def test_many_histories_are_as_one_by_one(model):
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
        (["i3", "nothing"], 5, "no item 'nothing' in .*model; for example 'i0'"),
        ("i3", 5, "`history` must be a list of item ids, but is the text 'i3'"),
        ([], 5, "`history` must have at least one item"),
        (["i3"], 0, "`k` must be a whole number of at least 1, but is 0"),
        (["i3"], 2.5, r"`k` must be a whole number of at least 1, but is 2\.5"),
    ],
)
def test_bad_input_is_told(model, history, k, message):
    with pytest.raises(InputError, match=message):
        model.recommend(history, k)


@pytest.mark.parametrize("variant", ["lora", "iisan"])
def test_a_new_item_is_what_training_would_have_made_of_it(
    study_folder, finished_trial, shop, tmp_path, variant
):
    """An item of the catalogue, given again as a new one: its embedding but for the id's part."""
    trial_id = finished_trial("perpeft", variant)
    export_trial(study_folder, trial_id, tmp_path / "model")
    model = perpeft_ray.load(tmp_path / "model")
    trial = open_trained(study_folder, trial_id)
    ids = trial.model.backbone.item_embedding.weight.detach()
    number = 5
    new = model.embed_item(model.titles[number], shop / "images" / f"{number}.png")
    assert new.shape == (GROUPS, trial.config.hidden_units)
    with torch.no_grad():
        for group in range(GROUPS):
            whole = trial.model.embed(np.array([number + 1]), trial.modules[group])[0]
            torch.testing.assert_close(new[group] + ids[number + 1], whole, atol=1e-5, rtol=1e-5)
    image = Image.open(shop / "images" / f"{number}.png")
    torch.testing.assert_close(model.embed_item(model.titles[number], image), new)
    assert not torch.allclose(model.embed_item(None, image), new, atol=1e-3)


def test_added_items_are_recommended_and_stand_in_histories(model, study_folder):
    trial = open_trained(study_folder, model.config.trial_id)
    history = ["i3", "i5"]
    before = {item.item_id: item.score for item in model.recommend(history, 1000)}
    group = model.group_of(history)
    new = model.embed_item(TITLE, None)
    model.add_items([NewItem("new", TITLE, None), NewItem("other", "a blue chair", None)])
    after = {item.item_id: item.score for item in model.recommend(history, 1000)}
    assert after.keys() - before.keys() == {"new", "other"}
    assert all(after[item] == pytest.approx(score, abs=1e-5) for item, score in before.items())
    inputs = np.zeros((1, model.config.trial.sequence_length), dtype=np.int64)
    inputs[0, -2:] = model.indices(history)
    state = trial.model.states(inputs, item_embeddings(trial, group))[0]
    assert after["new"] == pytest.approx(float(new[group] @ state), abs=1e-4)
    recommended = model.recommend([*history, "new"], 1000)
    assert "new" not in {item.item_id for item in recommended}
    with pytest.raises(InputError, match="a new id, but 'i3' is known"):
        model.add_items([NewItem("i3", TITLE, None)])
    with pytest.raises(InputError, match="a new id, but 'twice' is known"):
        model.add_items([NewItem("twice", TITLE, None), NewItem("twice", TITLE, None)])


def broken_image(form: str, folder: Path) -> Any:
    Image.new("RGB", (32, 32), "red").save(folder / "whole.png")
    (folder / "cut.png").write_bytes((folder / "whole.png").read_bytes()[:60])
    (folder / "page.jpg").write_bytes(b"<html>404</html>")
    (folder / "empty.jpg").write_bytes(b"")
    if form == "closed":
        image = Image.open(folder / "whole.png")
        image.close()
        return image
    if form == "pillow":
        return Image.open(folder / "cut.png")
    return str(folder / form) if form == "page.jpg" else folder / form


@pytest.mark.parametrize("form", ["cut.png", "page.jpg", "empty.jpg", "pillow", "closed"])
def test_a_broken_image_counts_as_missing(model, tmp_path, form):
    """With a title it is the item without image; without one the item is refused."""
    image = broken_image(form, tmp_path)
    for title in (None, "", " \t "):
        with pytest.raises(
            InputError, match=r"can be read for this model, but has an image that cannot be: "
        ):
            model.add_items([NewItem("new", title, image)])
        with pytest.raises(InputError, match="item 'new' must have a title or an image"):
            model.embed_item(title, image)
    assert "new" not in model
    image = broken_image(form, tmp_path)
    torch.testing.assert_close(model.embed_item(TITLE, image), model.embed_item(TITLE, None))


def test_items_without_content_or_file_are_told(model, tmp_path):
    with pytest.raises(InputError, match=r"must have a title or an image .*, but has neither"):
        model.embed_item("  ", None)
    for path in (tmp_path / "no.png", str(tmp_path), "", "x" * 5000, "a\0b"):
        with pytest.raises(InputError, match="`image` of item 'new' must be a file, but is"):
            model.embed_item(TITLE, path)


def test_an_image_is_the_same_by_string_path_and_pillow(model, tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 32, 3), dtype=np.uint8)
    file = tmp_path / "turned.tiff"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).convert("CMYK").save(file, exif=exif)
    monkeypatch.chdir(tmp_path)
    by_path = model.embed_item(None, file)
    torch.testing.assert_close(model.embed_item(None, str(file)), by_path)
    torch.testing.assert_close(model.embed_item(None, file.name), by_path)
    with Image.open(file) as opened:
        torch.testing.assert_close(model.embed_item(None, opened), by_path)
    model.add_items([NewItem("string", None, file.name), NewItem("path", None, file)])
    scores = model.scores([model.indices(["i3"])])[0, -2:]
    assert scores[0] == pytest.approx(float(scores[1]))


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
def test_values_of_a_wrong_type_are_told(model, item, message):
    before = len(model.item_ids)
    with pytest.raises(InputError, match=message):
        model.add_items([NewItem("good", TITLE, None), item])
    assert len(model.item_ids) == before


@pytest.mark.parametrize(
    ("method", "title", "image"), [("without_text", TITLE, None), ("without_image", None, "5.png")]
)
def test_what_a_model_does_not_read_is_no_content(
    study_folder, finished_trial, shop, tmp_path, method, title, image
):
    export_trial(study_folder, finished_trial(method, "lora"), tmp_path / "model")
    model = perpeft_ray.load(tmp_path / "model")
    item = NewItem("new", title, None if image is None else shop / "images" / image)
    with pytest.raises(
        InputError, match=r"must have (a title|an image).* for this model, but has none"
    ):
        model.add_items([item])
    model.add_items([item], without_content=True)
    assert "new" in {found.item_id for found in model.recommend(["i3"], 1000)}


def test_ids_alone_know_nothing_of_a_new_item(study_folder, finished_trial, tmp_path):
    export_trial(study_folder, finished_trial("without_mm", None), tmp_path / "model")
    assert perpeft_ray.load(tmp_path / "model").embed_item(TITLE, None).abs().max() == 0


def test_another_encoder_is_refused(study_folder, finished_trial, tmp_path):
    options = ExportOptions(with_encoder=True)
    export_trial(study_folder, finished_trial("perpeft", "lora"), tmp_path / "model", options)
    file = tmp_path / "model" / "encoder" / "config.json"
    file.write_text(file.read_text() + "\n")
    with pytest.raises(InputError, match="must be the one that the model was trained with"):
        perpeft_ray.load(tmp_path / "model").embed_item(TITLE, None)


def test_a_broken_open_image_counts_as_missing(model, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:1500])
    with Image.open(tmp_path / "cut.jpg") as image:
        missing = model.embed_item("lamp", None)
        assert torch.equal(missing, model.embed_item("lamp", image))
        for broken in (image, tmp_path / "cut.jpg"):
            with pytest.raises(InputError, match=r"must have a title or an image that can be"):
                model.embed_item(" ", broken)
