"""The model card of an exported model: README.md in Hugging Face's form."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from perpeft_ray.config import TrialConfig
from perpeft_ray.metrics import CUTOFFS
from perpeft_ray.models.layout import ENCODER, GROUPING, ExportConfig
from perpeft_ray.report.statistics import mean_and_interval, user_metric

_Measured = tuple[str, str, float, float, float]
"""Validation or test, metric, its mean over users, and low and high end of the interval."""


def model_card(config: ExportConfig, users: pd.DataFrame, has_adapter: bool) -> str:
    """The card as Markdown with a YAML head.

    `users`: the trial's rows of `users/`, for metrics and their 95 % bootstrap intervals over
    users. `has_adapter`: whether groups have `peft` folders.
    """
    measured, count = _measured(users)
    trial = config.trial
    of_groups = f"{config.groups} groups" if trial.groups else "one module for all users"
    parts = [
        _head(config, measured),
        f"# {config.study}: {trial.method}{f' with {trial.variant}' if trial.variant else ''}",
        "A sequential recommender (SASRec) whose item embeddings come from a foundation model, "
        f"`{trial.encoder}`, with {of_groups}, after *Personalized Parameter-Efficient "
        "Fine-Tuning of Foundation Models for Multimodal Recommendation* (WWW 2026, arXiv "
        f"2602.09445). Exported by perpeft-ray {config.version} from trial `{config.trial_id}`.",
        "## Metrics",
        f"Means over {count} users, × 100, with 95 % bootstrap intervals over users; "
        f"{_split(trial)}; candidates are all "
        f"{config.items:,} items minus the user's history, ties count against the target. One "
        "training seed: another seed's model may differ by more than these intervals.",
        _table(measured),
        "## Data",
        f"{config.users:,} users, {config.items:,} items, {config.interactions:,} interactions of "
        f"`{_public(trial.dataset)}`; fingerprint `{config.data_fingerprint}`.",
        "## Use",
        _use(config),
    ]
    if has_adapter:
        parts.append(_peft(config))
    settings = {name: value for name, value in vars(trial).items() if value is not None}
    settings["dataset"] = _public(trial.dataset)
    parts += ["## Settings", f"```json\n{json.dumps(settings, indent=2)}\n```", _LIMITS]
    return "\n\n".join(parts) + "\n"


def _split(trial: TrialConfig) -> str:
    if trial.split == "leave_one_out":
        return "the last item of each user is test, the one before it validation"
    return (
        "training ends at one point in time for all users; test is a user's first item in the "
        f"latest {trial.test_share:.0%} of all interactions, validation that in as many before"
    )


_LIMITS = """## Limits

- Recommendations repeat what the data's users did; nothing keeps popular items from growing more.
- A new item has no id embedding: it is placed by title and image alone.
- Only the latest `sequence_length` items of a history count; none of its items is recommended."""


def _measured(users: pd.DataFrame) -> tuple[list[_Measured], int]:
    """A trial's metrics in [0, 1], and the number of users of the last part that it read."""
    rows: list[_Measured] = []
    count = 0
    for part, title in (("valid", "validation"), ("test", "test")):
        ranks = users[f"{part}_rank"].dropna().to_numpy()
        if len(ranks) == 0:  # a trial of the search has not read test
            continue
        count = len(ranks)
        for name in (f"{metric}@{k}" for metric in ("hr", "ndcg") for k in CUTOFFS):
            values = user_metric(ranks, name)
            rows.append((title, name.upper(), *mean_and_interval(values)))
    return rows, count


def _head(config: ExportConfig, measured: Sequence[_Measured]) -> str:
    """The YAML head; every value is JSON, which is YAML."""
    results = [
        {
            "task": {"type": "sequential-recommendation", "name": "Sequential recommendation"},
            "dataset": {
                "type": config.data_fingerprint,
                "name": _public(config.trial.dataset),
                "split": part,
            },
            "metrics": [{"type": metric.lower(), "name": metric, "value": round(mean, 6)}],
        }
        for part, metric, mean, _, _ in measured
    ]
    head: dict[str, Any] = {
        "library_name": "perpeft-ray",
        "tags": ["recommendation", "sequential-recommendation", "sasrec", "peft"],
        "model-index": [{"name": config.study, "results": results}],
    }
    lines = (f"{name}: {json.dumps(value)}" for name, value in head.items())
    return "\n".join(["---", *lines, "---"])


def _table(rows: Sequence[_Measured]) -> str:
    lines = ["| part | metric | mean | 95 % interval |", "|---|---|---:|---:|"]
    lines += [
        f"| {part} | {metric} | {100 * mean:.2f} | {100 * low:.2f} to {100 * high:.2f} |"
        for part, metric, mean, low, high in rows
    ]
    if not any(part == "test" for part, *_ in rows):
        lines.append("\nTest was not read for this trial.")
    return "\n".join(lines)


def _use(config: ExportConfig) -> str:
    new_user = (
        "a user is assigned to the group whose centroid is nearest to their history's output under "
        f"the stage-1 model in `{GROUPING}/`"
        if config.trial.groups
        else "all users share one module"
    )
    return f"""```python
import perpeft_ray

model = perpeft_ray.load("path/to/this/folder")
model.recommend(["id of an item", "id of the next"], k=10)
model.embed_item("title of a new item", "photo.jpg")  # [groups, {config.trial.hidden_units}]
```

No user is stored: {new_user}. `groups/<g>/embeddings.safetensors` has all items as each group sees
them, {config.embeddings}; known items need no encoder. {_of_encoder(config)}"""


def _of_encoder(config: ExportConfig) -> str:
    if config.trial.method == "without_mm":
        return "This method has no encoder."
    if config.has_encoder:
        return f"New items are embedded by the encoder in `{ENCODER}/`."
    return (
        f"New items are embedded by `{_public(config.encoder)}`, which must be available on the "
        "machine that uses the model (`perpeft export --with-encoder` copies it)."
    )


def _peft(config: ExportConfig) -> str:
    pair = ""
    if config.encoder.startswith("pair:"):
        pair = " `adapter-text` and `adapter-image` are for the two models of the encoder."
    return f"""The adapters are standard `peft` folders.{pair}

```python
from peft import PeftModel
from transformers import AutoModel

base = AutoModel.from_pretrained("path/to/the/encoder")
group_0 = PeftModel.from_pretrained(base, "path/to/this/folder/groups/0/adapter")
```

An item's embedding is `id + {config.trial.multimodal_weight:g} * projector(features)`: the features
are those of `group_0`, the image's before the title's, a missing one's zero; the projector is the
group's `projector.safetensors`, the id embedding a row of `sasrec.safetensors`."""


def _public(name: str) -> str:
    """A data set's or encoder's name without local folders."""
    kind, colon, paths = name.partition(":")
    if not colon:
        kind, paths = "", name
    short = (
        Path(path).name if path.startswith((".", "/", "~")) else path for path in paths.split(",")
    )
    return kind + colon + ",".join(short)
