"""A prepared workspace that the training tests share, and trials on it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from perpeft_ray.config import (
    Method,
    Mode,
    PeftSettings,
    StudyConfig,
    TrainSettings,
    TrialConfig,
    Variant,
)
from perpeft_ray.train.workspace import prepare
from tests.small_shop import write_small_shop

MakeTrial = Callable[..., TrialConfig]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory):
    return write_small_shop(tmp_path_factory.mktemp("shop") / "small")


@pytest.fixture(scope="session")
def workspace(small_folder, tmp_path_factory):
    return prepare(f"parquet:{small_folder}", "toyshop-clip", tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def make_trial():
    def make(
        method: Method = "perpeft",
        variant: Variant | None = "lora",
        *,
        mode: Mode = "sequential",
        groups: int = 3,
        conditioning_weight: float = 0.5,
        seed: int = 0,
        learning_rate: float = 1e-3,
        **train: int,
    ) -> TrialConfig:
        settings = TrainSettings(
            **{"epochs": 1, "personal_epochs": 1, "validate_every": 1, "batch_size": 8, **train},
            dtype="float32",
            mode=mode,
        )
        return StudyConfig(train=settings, peft=PeftSettings(last_layers=None)).trial(
            method,
            variant=variant,
            rank=4,
            groups=groups,
            conditioning_weight=conditioning_weight,
            seed=seed,
            learning_rate=learning_rate,
        )

    return make
