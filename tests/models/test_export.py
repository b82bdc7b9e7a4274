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
from perpeft_ray.errors import InputError
from perpeft_ray.models.card import model_card
from perpeft_ray.models.export import export_trial
from perpeft_ray.models.trained import TrainedTrial, item_embeddings, open_trained
from perpeft_ray.recommender.projector import Projector
from perpeft_ray.store.folder import StudyFolder
from perpeft_ray.train.workspace import open_catalogue
from tests.encoder.tiny_models import write_tiny_model
from tests.models.conftest import GROUPS, clip_features, new_study, own, trials_of
from tests.plain_batch import plain_batch


def opened(study_folder: StudyFolder, model: Path) -> TrainedTrial:
    """The trial that a model was exported from."""
    return open_trained(study_folder, perpeft_ray.load(model).config.trial_id)


@pytest.mark.parametrize(
    ("method", "variant"),
    [
        *(("perpeft", variant) for variant in ("lora", "ia3", "iisan")),
        *(("without_text", "lora"), ("global", "lora"), ("frozen_mm", None), ("without_mm", None)),
    ],
)
def test_ranks_are_the_studys(study_folder, export, method, variant):
    """Counted from scores in the study's test groups, and ranked in those of the histories."""
    model = perpeft_ray.load(export(method, variant))
    trial = open_trained(study_folder, model.config.trial_id)
    users = trial.split.evaluated("test")
    expected = study_folder.users_of(trial.trial_id).iloc[users]
    histories = [trial.split.known("test").of(user).astype(np.int64) for user in users]
    targets = trial.split.test_item[users].astype(np.int64)
    assert len(users) > 20
    assert np.array_equal(model.ranks(histories, targets), expected.test_rank)
    if trial.grouping is not None:
        assert np.array_equal(model.assign(histories), expected.test_group)
    scores = model.scores(histories, trial.modules_of_users()[users]).numpy()
    for row, history, target, rank in zip(
        scores, histories, targets, expected.test_rank, strict=True
    ):
        others = np.setdiff1d(np.arange(1, len(row) + 1), [*history, target])
        assert (row[others - 1] >= row[target - 1]).sum() == rank


def test_peft_loads_each_groups_adapter(study_folder, exported):
    """As the card says: peft's features, the projector and the id embedding give the item's."""
    trial = opened(study_folder, exported)
    batch = plain_batch(open_catalogue(trial.workspace), np.arange(1, trial.split.num_items + 1))
    ids = load_file(exported / "sasrec.safetensors")["item_embedding.weight"]
    seen = []
    for group in range(GROUPS):
        folder = exported / "groups" / str(group)
        image, text = clip_features(folder / "adapter", batch)
        image, text = image * batch.has_image[:, None], text * batch.has_title[:, None]
        projector = Projector(image.shape[1] + text.shape[1], trial.config.hidden_units)
        projector.load_state_dict(load_file(folder / "projector.safetensors"))
        with torch.no_grad():
            content = projector(torch.cat([image, text], dim=1))
        mine = ids[1:] + trial.config.multimodal_weight * content
        torch.testing.assert_close(mine, item_embeddings(trial, group)[1:], atol=1e-5, rtol=1e-5)
        seen.append(content)
    assert (seen[0] - seen[1]).abs().max() > 1e-3  # groups do differ


def test_iisan_is_safetensors_with_its_shapes(study_folder, export):
    folder = export("perpeft", "iisan")
    side = folder / "groups" / "1" / "iisan"
    tensors = load_file(side / "model.safetensors")
    config = json.loads((side / "config.json").read_text())
    assert (config["variant"], config["bottleneck"]) == ("iisan", 32)
    assert config["shapes"] == {name: list(tensor.shape) for name, tensor in tensors.items()}
    module = opened(study_folder, folder).modules[1]
    assert all(torch.equal(tensor, module[f"encoder.{name}"]) for name, tensor in tensors.items())


def test_half_precision_is_half_as_large_and_close(exported, export):
    half = export(embeddings="float16")
    full_table, table = (
        load_file(folder / "groups" / "0" / "embeddings.safetensors")["embeddings"]
        for folder in (exported, half)
    )
    assert table.dtype == torch.float16
    torch.testing.assert_close(table.float(), full_table, atol=2e-3, rtol=2e-3)
    best, same = (perpeft_ray.load(f).recommend(["i0", "i1", "i2"], 1)[0] for f in (exported, half))
    assert same.score == pytest.approx(best.score, rel=1e-2)


@pytest.mark.parametrize(
    ("family", "variant"),
    [
        ("toyshop-clip", "lora"),
        ("text", "vera"),
        ("siglip", "iisan"),
        ("align", "bitfit"),
        ("pair", "oft"),
    ],
)
def test_a_folder_with_its_encoder_works_alone(shop, tmp_path, family, variant):
    """Study, data, cache and encoder are gone; the folder was moved."""
    encoder = family
    if family != "toyshop-clip":
        encoder = write_tiny_model(family, tmp_path / "machine" / "encoder")
    data = Path(shutil.copytree(shop, tmp_path / "machine" / "data"))
    folder = new_study(data, tmp_path / "machine" / "results", encoder)
    trial = open_trained(folder, trials_of(folder)("perpeft", variant))
    export_trial(folder, trial.trial_id, tmp_path / "model", with_encoder=True)
    module = tmp_path / "model" / "groups" / "1"
    if family in ("text", "pair"):
        name = "adapter" if family == "text" else "adapter-text"
        path = encoder.removeprefix(f"{family}:").partition(",")[0]
        _check_text_adapter(trial, path, module / name)
    if family == "pair":
        image = AutoModel.from_pretrained(tmp_path / "machine" / "encoder" / "image")
        adapted = PeftModel.from_pretrained(image, str(module / "adapter-image"))
        kept = load_file(module / "adapter-image" / "adapter_model.safetensors")
        assert set(kept) == set(get_peft_model_state_dict(adapted))
    ids = trial.model.backbone.item_embedding.weight.detach()
    expected = [item_embeddings(trial, group)[6] - ids[6] for group in range(GROUPS)]
    shutil.rmtree(tmp_path / "machine")
    (tmp_path / "model").rename(tmp_path / "moved")
    model = perpeft_ray.load(tmp_path / "moved")
    assert str(tmp_path) not in model.config.encoder
    assert len(model.recommend(["i3", "i5"], 4)) == 4
    new = model.embed_item(model.titles[5], shop / "images" / "5.png")
    torch.testing.assert_close(new, torch.stack(expected), atol=1e-5, rtol=1e-5)
    endings = {file.suffix for file in (tmp_path / "moved").rglob("*") if file.is_file()}
    assert endings <= {".json", ".safetensors", ".md", ".txt"}


def _check_text_adapter(trial: TrainedTrial, path: str, adapter: Path) -> None:
    """BERT with the adapter of group 1 pools titles to the text half of training's features."""
    adapted = PeftModel.from_pretrained(AutoModel.from_pretrained(path), str(adapter)).eval()
    items = np.arange(2, trial.split.num_items + 1)  # the first has no title
    batch = plain_batch(open_catalogue(trial.workspace), items)
    mask = batch.attention_mask[:, :, None]
    tower = trial.model.tower
    assert tower is not None
    with torch.no_grad():
        out = adapted(input_ids=batch.token_ids, attention_mask=batch.attention_mask)
        pooled = (out.last_hidden_state * mask).sum(1) / mask.sum(1)
        features = functional_call(tower.encoder, own(trial.modules[1]), tower.inputs(items))
    torch.testing.assert_close(pooled, features[:, -pooled.shape[1] :], atol=1e-5, rtol=1e-5)


def test_an_encoder_of_the_hub_is_exported(shop, tmp_path, monkeypatch):
    """From the hub's local cache, without its pickles; then the cache is gone."""
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


def test_the_card_is_hugging_faces_and_has_the_studys_numbers(study_folder, exported, shop):
    card = ModelCard.load(exported / "README.md")
    config = perpeft_ray.load(exported).config
    row = study_folder.trial(config.trial_id)
    results = {(r.dataset_split, r.metric_name): r.metric_value for r in card.data.eval_results}
    for metric, column in (("HR@10", "hr_at_10"), ("NDCG@20", "ndcg_at_20")):
        assert results["validation", metric] == pytest.approx(row[f"valid_{column}"], abs=1e-5)
        assert results["test", metric] == pytest.approx(row[f"test_{column}"], abs=1e-5)
    assert f"| test | NDCG@20 | {100 * row.test_ndcg_at_20:.2f} |" in card.text
    assert config.data_fingerprint in card.text
    for local in (study_folder.path.parent, shop.parent):
        assert str(local) not in (exported / "README.md").read_text()


def test_the_card_describes_a_split_by_time(exported):
    """Other users are tested than validated."""
    config = perpeft_ray.load(exported).config
    trial = dataclasses.replace(config.trial, split="time", test_share=0.1)
    users = pd.DataFrame({"valid_rank": [0, np.nan, np.nan], "test_rank": [np.nan, 0, 40]})
    text = model_card(dataclasses.replace(config, trial=trial), users, has_adapter=False)
    assert "Means over 2 users" in text
    assert "| validation | HR@10 | 100.00 |" in text
    assert "| test | HR@10 | 50.00 |" in text
    assert "test is a user's first item in the latest 10% of all interactions" in text


def test_a_trial_of_the_search_has_no_test_on_its_card(exported):
    users = pd.DataFrame({"valid_rank": [0, 1], "test_rank": [np.nan, np.nan]})
    text = model_card(perpeft_ray.load(exported).config, users, has_adapter=False)
    assert "Test was not read" in text
    assert "| test |" not in text


@pytest.mark.parametrize("method", ["random_grouping", "user_level_1", "group_level_2"])
def test_a_method_without_a_model_for_new_users_is_refused(
    study_folder, finished_trial, tmp_path, method
):
    with pytest.raises(InputError, match=f"but is {method}"):
        export_trial(study_folder, finished_trial(method, "lora"), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_refused(study_folder, finished_trial, tmp_path):
    with pytest.raises(InputError, match="must not exist yet"):
        export_trial(study_folder, finished_trial(), tmp_path)


@pytest.fixture
def copied(exported, tmp_path):
    """A copy of an exported model, to be broken."""
    return Path(shutil.copytree(exported, tmp_path / "model"))


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "must have config.json"),
        ("items.json", "must be a whole exported model"),
        ("groups/1/embeddings.safetensors", "must be a whole exported model"),
        ("grouping/centroids.safetensors", "must be a whole exported model"),
    ],
)
def test_an_incomplete_model_is_refused(copied, missing, message):
    (copied / missing).unlink()
    with pytest.raises(InputError, match=message):
        perpeft_ray.load(copied)


@pytest.mark.parametrize(
    "changed", ["items.json", "groups/1/embeddings.safetensors", "grouping/centroids.safetensors"]
)
def test_files_of_different_models_are_refused(copied, changed):
    file = copied / changed
    if file.suffix == ".json":
        items = json.loads(file.read_text())
        file.write_text(json.dumps({name: values[1:] for name, values in items.items()}))
    else:
        save_file({name: t[1:].contiguous() for name, t in load_file(file).items()}, file)
    with pytest.raises(InputError, match=r"must be a whole exported model, but: .* must have"):
        perpeft_ray.load(copied)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"format": 0}, "of format 1"),
        ({"items": "30"}, "`items` of .* must be int, but is '30'"),
        ({"encoder": 3}, "`encoder` of .* must be str, but is 3"),
        ({"trial": [1]}, "export it again"),
        ({"trial": {"rank": 4}}, "export it again"),
        ({"encoder": "./../elsewhere"}, "`encoder` of .* must stay inside, but .* goes up"),
    ],
)
def test_an_invalid_config_is_refused(copied, changed, message):
    file = copied / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    with pytest.raises(InputError, match=message):
        perpeft_ray.load(copied).embed_item("red lamp", None)
