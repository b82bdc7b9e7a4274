"""A small study with finished trials, trained in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModel

from perpeft_ray.config import Method, StudyConfig, TrainSettings, Variant
from perpeft_ray.data.catalogue import ItemBatch
from perpeft_ray.data.interactions import load_folder
from perpeft_ray.encoder.source import TOYSHOP_CLIP
from perpeft_ray.models.portable import open_workspace
from perpeft_ray.recommender.model import GroupParameters
from perpeft_ray.store.folder import StudyFolder
from perpeft_ray.study.plan import TrialSpec
from perpeft_ray.train.fingerprints import fingerprints
from tests.small_shop import write_small_shop

FinishedTrial = Callable[..., str]

GROUPS = 3


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shop(tmp_path_factory):
    return write_small_shop(tmp_path_factory.mktemp("shop") / "small")


@pytest.fixture(scope="session")
def study_folder(shop, tmp_path_factory):
    return new_study(shop, tmp_path_factory.mktemp("results"))


def new_study(shop: Path, storage: Path, encoder: str = "toyshop-clip") -> StudyFolder:
    train = TrainSettings(
        epochs=1, personal_epochs=1, validate_every=1, batch_size=8, dtype="float32"
    )
    config = StudyConfig(
        dataset=f"parquet:{shop}",
        encoder=encoder,
        storage=str(storage),
        study="small",
        train=train,
    )
    dataset = load_folder(shop, config.dataset, config.data)
    return StudyFolder.create(config, fingerprints(dataset, encoder))


@pytest.fixture(scope="session")
def finished_trial(study_folder):
    """Trains a trial of the study, as the ablation does; its id. A second call finds it done."""
    return trials_of(study_folder)


def trials_of(study_folder: StudyFolder) -> FinishedTrial:
    from perpeft_ray.study.trainable import Study
    from perpeft_ray.train.trial import run_trial
    from tests.one_trial import run_spec

    config = study_folder.config
    study = Study(
        config=config,
        folder=study_folder,
        workspace=open_workspace(study_folder)[1],
        run=run_trial,
    )

    def finish(
        method: Method = "perpeft",
        variant: Variant | None = "lora",
        *,
        learning_rate: float = 1e-2,
        phase: str = "ablation",
    ) -> str:
        trial = config.trial(
            method,
            seed=0,
            variant=variant,
            rank=4,
            groups=GROUPS,
            conditioning_weight=0.5,
            learning_rate=learning_rate,
        )
        spec = TrialSpec("search" if phase == "search" else "ablation", trial)
        if spec.trial_id not in set(study_folder.trials().trial_id):
            run_spec(study, spec, lambda result: None)
        return spec.trial_id

    return finish


def own(module: GroupParameters) -> dict[str, torch.Tensor]:
    """A module's tensors as its encoder names them."""
    prefix = "encoder."
    return {k.removeprefix(prefix): v for k, v in module.items() if k.startswith(prefix)}


def clip_features(adapter: Path, batch: ItemBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """What transformers' toyshop-clip with peft's adapter makes of images and of titles."""
    base = AutoModel.from_pretrained(TOYSHOP_CLIP)
    adapted = PeftModel.from_pretrained(base, str(adapter)).eval()
    assert batch.pixels is not None
    with torch.no_grad():
        image = adapted.get_image_features(pixel_values=(batch.pixels / 255 - 0.5) / 0.5)
        text = adapted.get_text_features(input_ids=batch.token_ids)
    return image.pooler_output, text.pooler_output


@pytest.fixture(scope="session")
def export(study_folder, finished_trial, tmp_path_factory):
    """The exported model of a method and variant, exported once; not to be changed."""
    from perpeft_ray.models.export import export_trial

    root = tmp_path_factory.mktemp("exported")

    def make(method: Method = "perpeft", variant: Variant | None = "lora", **options) -> Path:
        out = root / "-".join(map(str, (method, variant, *options.items())))
        if not out.exists():
            trial_id = finished_trial(method, variant)
            export_trial(study_folder, trial_id, out, **options)
        return out

    return make


@pytest.fixture(scope="session")
def exported(export):
    """An exported PerPEFT model with LoRA; not to be changed."""
    return export()
