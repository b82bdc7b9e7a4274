"""Exported models: the adapters are peft's own, and the whole gives the study's ranks."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch.func import functional_call
from transformers import AutoModel

import perpeft_ray
from perpeft_ray.cli.main import perpeft
from perpeft_ray.encoder.source import TOYSHOP_CLIP
from perpeft_ray.errors import InputError
from perpeft_ray.models.card import model_card
from perpeft_ray.models.export import ExportOptions, export_trial
from perpeft_ray.models.loaded import LoadedModel
from perpeft_ray.models.trained import TrainedTrial, item_embeddings, open_trained
from perpeft_ray.recommender.projector import Projector
from perpeft_ray.store.folder import StudyFolder
from perpeft_ray.train.workspace import open_catalogue
from tests.encoder.tiny_models import write_tiny_model
from tests.models.conftest import GROUPS, new_study, trials_of

CASES = [
    ("perpeft", "lora"),
    ("perpeft", "ia3"),
    ("perpeft", "iisan"),
    ("without_text", "lora"),
    ("global", "lora"),
    ("frozen_mm", None),
    ("without_mm", None),
]


def ranks_of(model: LoadedModel, trial: TrainedTrial, groups: np.ndarray | None) -> np.ndarray:
    """Each evaluable user's test rank, counted plainly from the model's scores."""
    known = trial.split.known("test")
    users = trial.split.evaluated("test")
    histories = [known.of(user).astype(np.int64) for user in users]
    scores = model.scores(histories, None if groups is None else groups[users]).numpy()
    ranks = []
    for row, history, target in zip(scores, histories, trial.split.test_item[users], strict=True):
        others = np.setdiff1d(np.arange(1, len(row) + 1), [*history, target])
        ranks.append(int((row[others - 1] >= row[target - 1]).sum()))
    return np.array(ranks)


@pytest.mark.parametrize(("method", "variant"), CASES)
def test_ranks_are_the_studys(study_folder, finished_trial, tmp_path, method, variant):
    """With the study's test groups, and with those that the histories lead to: the same ones."""
    trial_id = finished_trial(method, variant)
    export_trial(study_folder, trial_id, tmp_path / "model")
    trial = open_trained(study_folder, trial_id)
    model = perpeft_ray.load(tmp_path / "model")
    rows = study_folder.users_of(trial_id).set_index("user_id")
    ids = trial.split.user_ids[trial.split.evaluated("test")]
    assert len(ids) > 20
    assert np.array_equal(
        ranks_of(model, trial, trial.modules_of_users()), rows.loc[ids, "test_rank"]
    )
    assert np.array_equal(ranks_of(model, trial, None), rows.loc[ids, "test_rank"])
    known = trial.split.known("test")
    histories = [known.of(user).astype(np.int64) for user in trial.split.evaluated("test")]
    targets = trial.split.test_item[trial.split.evaluated("test")].astype(np.int64)
    assert np.array_equal(model.ranks(histories, targets), rows.loc[ids, "test_rank"])
    if trial.grouping is not None:
        assert np.array_equal(model.assign(histories), rows.loc[ids, "test_group"])


def test_peft_loads_each_groups_adapter(study_folder, finished_trial, tmp_path):
    """transformers' CLIP with peft's adapter gives the features, and with the projector and id
    embedding the item embeddings, that training had."""
    trial_id = finished_trial("perpeft", "lora")
    export_trial(study_folder, trial_id, tmp_path / "model")
    trial = open_trained(study_folder, trial_id)
    batch = open_catalogue(trial.workspace).batch(np.arange(1, trial.split.num_items + 1))
    assert batch.pixels is not None
    pixels = (batch.pixels / 255 - 0.5) / 0.5
    ids = load_file(tmp_path / "model" / "sasrec.safetensors")["item_embedding.weight"]
    seen = []
    for group in range(GROUPS):
        folder = tmp_path / "model" / "groups" / str(group)
        base = AutoModel.from_pretrained(TOYSHOP_CLIP)
        adapted = PeftModel.from_pretrained(base, str(folder / "adapter")).eval()
        with torch.no_grad():
            image = adapted.get_image_features(pixel_values=pixels).pooler_output
            text = adapted.get_text_features(input_ids=batch.token_ids).pooler_output
            image, text = image * batch.has_image[:, None], text * batch.has_title[:, None]
            projector = Projector(image.shape[1] + text.shape[1], trial.config.hidden_units)
            projector.load_state_dict(load_file(folder / "projector.safetensors"))
            content = projector(torch.cat([image, text], dim=1))
        mine = ids[1:] + trial.config.multimodal_weight * content
        torch.testing.assert_close(mine, item_embeddings(trial, group)[1:], atol=1e-5, rtol=1e-5)
        seen.append(content)
    assert (seen[0] - seen[1]).abs().max() > 1e-3  # groups do differ


def test_iisan_is_safetensors_with_its_shape(study_folder, finished_trial, tmp_path):
    trial_id = finished_trial("perpeft", "iisan")
    export_trial(study_folder, trial_id, tmp_path / "model")
    side = tmp_path / "model" / "groups" / "1" / "iisan"
    tensors = load_file(side / "model.safetensors")
    config = json.loads((side / "config.json").read_text())
    assert (config["variant"], config["bottleneck"]) == ("iisan", 32)
    assert config["shapes"] == {name: list(tensor.shape) for name, tensor in tensors.items()}
    module = open_trained(study_folder, trial_id).modules[1]
    for name, tensor in tensors.items():
        assert torch.equal(tensor, module[f"encoder.{name}"])


def test_half_precision_is_half_and_near(study_folder, finished_trial, tmp_path):
    trial_id = finished_trial("perpeft", "lora")
    export_trial(study_folder, trial_id, tmp_path / "full")
    export_trial(study_folder, trial_id, tmp_path / "half", ExportOptions(embeddings="float16"))
    full, half = (
        load_file(tmp_path / name / "groups" / "0" / "embeddings.safetensors")["embeddings"]
        for name in ("full", "half")
    )
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), full, atol=2e-3, rtol=2e-3)
    history = perpeft_ray.load(tmp_path / "full").item_ids[:3]
    best = [perpeft_ray.load(tmp_path / name).recommend(history, 1) for name in ("full", "half")]
    assert best[0][0].score == pytest.approx(best[1][0].score, rel=1e-2)


def test_the_folder_works_without_the_study(study_folder, finished_trial, tmp_path):
    """Study, data and cache are gone; only the folder is there, elsewhere, with its encoder."""
    storage = tmp_path / "there"
    shutil.copytree(study_folder.path.parent, storage)
    trial_id = finished_trial("perpeft", "lora")
    before = open_trained(study_folder, trial_id)
    folder = StudyFolder.open(storage / study_folder.path.name)
    export_trial(folder, trial_id, tmp_path / "model", ExportOptions(with_encoder=True))
    shutil.rmtree(storage)
    (tmp_path / "model").rename(tmp_path / "moved")
    model = perpeft_ray.load(tmp_path / "moved")
    assert model.config.encoder == "./encoder"
    assert len(model.recommend(["i3", "i5"], 4)) == 4
    new = model.embed_item("red lamp", None)
    assert new.shape == (GROUPS, before.config.hidden_units)
    names = {file.suffix for file in (tmp_path / "moved").rglob("*") if file.is_file()}
    assert names <= {".json", ".safetensors", ".md", ".txt"}


@pytest.mark.parametrize("family", ["text", "siglip", "pair"])
def test_every_kind_of_encoder_goes_along(shop, tmp_path, family):
    """A pair's two models too; then the originals are gone, and a new item is still embedded."""
    encoder = write_tiny_model(family, tmp_path / "encoder")
    folder = new_study(shop, tmp_path / "results", encoder)
    trial_id = trials_of(folder)("perpeft", "lora")
    trial = open_trained(folder, trial_id)
    export_trial(folder, trial_id, tmp_path / "model", ExportOptions(with_encoder=True))
    if family != "siglip":
        name = "adapter" if family == "text" else "adapter-text"
        path = encoder.removeprefix(f"{family}:").partition(",")[0]
        _check_text_adapter(trial, path, tmp_path / "model" / "groups" / "1" / name)
    if family == "pair":
        image = AutoModel.from_pretrained(tmp_path / "encoder" / "image")
        folder_of_image = tmp_path / "model" / "groups" / "1" / "adapter-image"
        adapted = PeftModel.from_pretrained(image, str(folder_of_image))
        kept = load_file(folder_of_image / "adapter_model.safetensors")
        assert set(kept) == set(get_peft_model_state_dict(adapted))
    shutil.rmtree(tmp_path / "encoder")
    model = perpeft_ray.load(tmp_path / "model")
    assert str(tmp_path) not in model.config.encoder
    new = model.embed_item(model.titles[5], shop / "images" / "5.png")
    ids = trial.model.backbone.item_embedding.weight.detach()
    for group in range(GROUPS):
        expected = item_embeddings(trial, group)[6] - ids[6]
        torch.testing.assert_close(new[group], expected, atol=1e-5, rtol=1e-5)


def _check_text_adapter(trial: TrainedTrial, path: str, adapter: Path) -> None:
    """BERT with the adapter of group 1 pools titles to the text half of training's features."""
    adapted = PeftModel.from_pretrained(AutoModel.from_pretrained(path), str(adapter)).eval()
    items = np.arange(2, trial.split.num_items + 1)  # the first has no title
    batch = open_catalogue(trial.workspace).batch(items)
    mask = batch.attention_mask[:, :, None]
    assert trial.model.tower is not None
    own = {
        name.removeprefix("encoder."): tensor
        for name, tensor in trial.modules[1].items()
        if name.startswith("encoder.")
    }
    with torch.no_grad():
        out = adapted(input_ids=batch.token_ids, attention_mask=batch.attention_mask)
        pooled = (out.last_hidden_state * mask).sum(1) / mask.sum(1)
        tower = trial.model.tower
        features = functional_call(tower.encoder, own, tower.inputs(items))
    text = features[:, -pooled.shape[1] :]
    torch.testing.assert_close(pooled, text, atol=1e-5, rtol=1e-5)


def test_the_card_is_hugging_faces_and_has_the_studys_numbers(
    study_folder, finished_trial, tmp_path
):
    trial_id = finished_trial("perpeft", "lora")
    export_trial(study_folder, trial_id, tmp_path / "model")
    card = ModelCard.load(tmp_path / "model" / "README.md")
    row = study_folder.trials().set_index("trial_id").loc[trial_id]
    results = {(r.dataset_split, r.metric_name): r.metric_value for r in card.data.eval_results}
    for metric in ("HR@10", "NDCG@20"):
        column = metric.lower().replace("@", "_at_")
        assert results["validation", metric] == pytest.approx(row[f"valid_{column}"], abs=1e-5)
        assert results["test", metric] == pytest.approx(row[f"test_{column}"], abs=1e-5)
    assert perpeft_ray.load(tmp_path / "model").config.data_fingerprint in card.text
    assert str(study_folder.path.parent) not in card.content
    assert (
        str(Path(study_folder.config.dataset.removeprefix("parquet:")).parent) not in card.content
    )
    assert f"| test | NDCG@20 | {100 * row.test_ndcg_at_20:.2f} |" in card.text


def test_the_card_says_how_the_data_were_split(study_folder, finished_trial, tmp_path):
    """By time, other users are tested than validated."""
    export_trial(study_folder, finished_trial("perpeft", "lora"), tmp_path / "model")
    config = perpeft_ray.load(tmp_path / "model").config
    trial = dataclasses.replace(config.trial, split="time", test_share=0.1)
    users = pd.DataFrame({"valid_rank": [0, np.nan, np.nan], "test_rank": [np.nan, 0, 40]})
    text = model_card(dataclasses.replace(config, trial=trial), users, has_adapter=False)
    assert "Means over 2 users" in text
    assert "| validation | HR@10 | 100.00 |" in text
    assert "| test | HR@10 | 50.00 |" in text
    assert "test is a user's first item in the latest 10% of all interactions" in text


def test_a_searched_trial_has_no_test_on_its_card(study_folder, finished_trial, tmp_path):
    trial_id = finished_trial("perpeft", "lora", phase="search", learning_rate=2e-2)
    export_trial(study_folder, trial_id, tmp_path / "model")
    text = (tmp_path / "model" / "README.md").read_text()
    assert "Test was not read" in text
    assert "| test |" not in text


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(
    study_folder, finished_trial, tmp_path
):
    out = tmp_path / "model"
    for method in ("random_grouping", "user_level_1", "group_level_2"):
        with pytest.raises(InputError, match=f"but is {method}"):
            export_trial(study_folder, finished_trial(method, "lora"), out)
    assert list(tmp_path.iterdir()) == []
    out.mkdir()
    with pytest.raises(InputError, match="must not exist yet"):
        export_trial(study_folder, finished_trial("perpeft", "lora"), out)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("config.json", "must have config.json"),
        ("items.json", "must be a whole exported model"),
        ("groups/1/embeddings.safetensors", "must be a whole exported model"),
        ("grouping/centroids.safetensors", "must be a whole exported model"),
    ],
)
def test_a_folder_that_is_no_whole_model_is_told(
    study_folder, finished_trial, tmp_path, broken, message
):
    export_trial(study_folder, finished_trial("perpeft", "lora"), tmp_path / "model")
    (tmp_path / "model" / broken).unlink()
    with pytest.raises(InputError, match=message):
        perpeft_ray.load(tmp_path / "model")


@pytest.mark.parametrize(
    "changed", ["items.json", "groups/1/embeddings.safetensors", "grouping/centroids.safetensors"]
)
def test_files_of_different_models_are_told(study_folder, finished_trial, tmp_path, changed):
    export_trial(study_folder, finished_trial("perpeft", "lora"), tmp_path / "model")
    file = tmp_path / "model" / changed
    if file.suffix == ".json":
        items = json.loads(file.read_text())
        file.write_text(json.dumps({name: values[1:] for name, values in items.items()}))
    else:
        cut = {name: tensor[1:].contiguous() for name, tensor in load_file(file).items()}
        save_file(cut, file)
    with pytest.raises(InputError, match=r"must be a whole exported model, but: .* must have"):
        perpeft_ray.load(tmp_path / "model")


def test_a_model_of_another_format_is_refused(study_folder, finished_trial, tmp_path):
    export_trial(study_folder, finished_trial("without_mm", None), tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"format": 0}))
    with pytest.raises(InputError, match="of format 1"):
        perpeft_ray.load(tmp_path / "model")
    del values["trial"]["rank"]
    file.write_text(json.dumps(values))
    with pytest.raises(InputError, match="export it again"):
        perpeft_ray.load(tmp_path / "model")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"items": "30"}, "`items` of .* must be int, but is '30'"),
        ({"encoder": 3}, "`encoder` of .* must be str, but is 3"),
        ({"trial": [1]}, "export it again"),
        ({"encoder": "./../elsewhere"}, "`encoder` of .* must stay inside, but .* goes up"),
    ],
)
def test_a_config_that_was_tampered_with_is_told(exported, tmp_path, changed, message):
    shutil.copytree(exported, tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    with pytest.raises(InputError, match=message):
        perpeft_ray.load(tmp_path / "model").embed_item("red lamp", None)


def test_an_encoder_of_the_hub_goes_along(shop, tmp_path, monkeypatch):
    """From the local cache of the hub, as one that was downloaded; then the cache is gone."""
    hub = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    cached = hub / "models--someone--tiny"
    write_tiny_model("clip", cached / "snapshots" / "1234")
    (cached / "snapshots" / "1234" / "pytorch_model.bin").write_bytes(b"a pickle")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("1234")
    folder = new_study(shop, tmp_path / "results", "someone/tiny")
    trial_id = trials_of(folder)("perpeft", "ia3")
    command = [str(folder.path), str(tmp_path / "model"), "--trial", trial_id]
    perpeft(["export", *command, "--with-encoder"])
    shutil.rmtree(hub)
    model = perpeft_ray.load(tmp_path / "model")
    assert model.config.encoder == "./encoder"
    assert not list((tmp_path / "model").rglob("*.bin"))
    assert model.embed_item("red lamp", shop / "images" / "5.png").abs().max() > 0
