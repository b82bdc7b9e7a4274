"""What a trial reports to Tune, and where it keeps its checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from perpeft_ray.config import StudyConfig
from perpeft_ray.metrics import RankingMetrics
from perpeft_ray.store.folder import StudyFolder
from perpeft_ray.study.trainable import BEST_SO_FAR, OBJECTIVE, Study, from_result, to_result
from perpeft_ray.train.outcome import EpochRecord

VALID = RankingMetrics(*[0.1] * 6)


@pytest.mark.parametrize(
    ("uri", "place"),
    [
        ("", Path("/results/ablation_peft/checkpoints")),
        ("s3://bucket/results/ablation_peft", "s3://bucket/results/ablation_peft/checkpoints"),
    ],
)
def test_checkpoints_are_in_the_study(uri: str, place: Path | str) -> None:
    folder = StudyFolder(Path("/results/ablation_peft"), uri)
    assert Study(StudyConfig(), folder, workspace=None, run=None).checkpoints == place


def test_an_epoch_is_reported_with_its_record_and_the_best_so_far() -> None:
    epochs = [
        EpochRecord(1, 1, 0.75, 1.0, VALID, 0.5, False),
        EpochRecord(3, 2, 0.25, 1.0, VALID, 0.25, False),  # stage 3 begins anew
    ]
    result = to_result(epochs)
    assert from_result(result) == epochs[-1]
    assert (result[OBJECTIVE], result[BEST_SO_FAR]) == (0.25, 0.5)


def test_an_epoch_without_validation_has_no_objective() -> None:
    epoch = EpochRecord(1, 1, 0.75, 1.0, None, None, False)
    assert from_result(to_result([epoch])) == epoch
    assert OBJECTIVE not in to_result([epoch])


def test_an_objective_that_is_not_finite_ends_the_trial() -> None:
    epoch = EpochRecord(1, 2, 0.75, 1.0, VALID, float("nan"), False)
    with pytest.raises(FloatingPointError, match="validation NDCG@20 is nan in epoch 2"):
        to_result([epoch])
