"""How much each searched setting matters, by Optuna's fANOVA."""

from __future__ import annotations

from collections.abc import Sequence

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.importance import FanovaImportanceEvaluator

from perpeft_ray.study.search.space import Setting


def setting_importances(settings: Sequence[Setting], scores: Sequence[float]) -> dict[str, float]:
    """Share of the variance of the scores that each setting explains; most important first.

    `settings`: of finished trials, [n]; one that does not apply (the rank of (IA)³) is missing or
    None. `scores`: their validation NDCG@20, [n]. Omits settings that are the same in all trials.
    Empty if nothing varies. Source: Hutter et al., ICML 2014.
    """
    names = dict.fromkeys(name for setting in settings for name in setting)
    values = {name: tuple({setting.get(name): None for setting in settings}) for name in names}
    varied = {
        name: CategoricalDistribution(choices)
        for name, choices in values.items()
        if len(choices) > 1
    }
    if len(set(scores)) < 2 or not varied:
        return {}
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # no message about the in-memory study
    study = optuna.create_study(direction="maximize")
    optuna.logging.set_verbosity(verbosity)
    study.add_trials(
        [
            optuna.create_trial(
                params={name: setting.get(name) for name in varied},
                distributions=dict(varied),
                value=score,
            )
            for setting, score in zip(settings, scores, strict=True)
        ]
    )
    return optuna.importance.get_param_importances(
        study, evaluator=FanovaImportanceEvaluator(seed=0), params=list(varied)
    )
