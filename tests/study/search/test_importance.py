"""Importances of settings whose effect is known."""

from __future__ import annotations

from itertools import product

import pytest

from perpeft_ray.study.search.importance import setting_importances


def test_the_setting_that_decides_the_score_is_first() -> None:
    settings = [
        {"variant": variant, "groups": groups, "learning_rate": 1e-2}
        | ({"rank": rank} if variant == "lora" else {})
        for variant, rank, groups in product(("lora", "ia3"), (2, 4), (4, 6, 8))
    ]
    scores = [0.1 + 0.01 * setting["groups"] for setting in settings]
    importances = setting_importances(settings, scores)
    assert next(iter(importances)) == "groups"
    assert set(importances) == {"variant", "rank", "groups"}
    assert importances["groups"] > 0.95
    assert sum(importances.values()) == pytest.approx(1.0)


def test_nothing_to_explain_is_no_importance() -> None:
    setting = {"variant": "ia3", "groups": 4}
    assert setting_importances([setting], [0.1]) == {}
    assert setting_importances([setting, {**setting, "groups": 6}], [0.1, 0.1]) == {}
