"""The configuration of a trial: flat, frozen, validated, hashed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any, get_args

from perpeft_ray.config.methods import METHODS, PEFT_METHODS, PERSONAL_METHODS, Method, exists
from perpeft_ray.config.rules import applies, at_least, between, one_of, positive
from perpeft_ray.config.searchable import SEARCHABLE
from perpeft_ray.config.settings import DataSettings, Dtype, Mode, SplitKind
from perpeft_ray.config.variants import FACTS, VARIANTS, Variant
from perpeft_ray.errors import InputError


@dataclass(frozen=True, kw_only=True)
class TrialConfig:
    """Everything that determines a trial's result, and nothing else.

    Raises `InputError` if a value breaks its rule. Settings that do not apply to the method or
    variant must be ``None``; `StudyConfig.trial` sees to that.
    """

    dataset: str
    split: SplitKind = "leave_one_out"
    test_share: float | None = None
    min_interactions: int = 1
    sample_users: int | None = None
    sample_seed: int | None = None
    encoder: str
    method: Method
    variant: Variant | None
    rank: int | None
    last_layers: int | None
    """None: all layers."""
    bottleneck: int | None
    adapter_dropout: float | None
    groups: int | None
    conditioning_weight: float | None
    seed: int
    learning_rate: float
    weight_decay: float
    peft_lr_scale: float
    id_lr_scale: float
    batch_size: int
    stage1_epochs: int
    stage3_epochs: int
    validate_every: int
    patience: int
    """Validations without a new best after which a stage ends; 0: never."""
    mode: Mode
    step_batches: int = 1
    """Batches per step in stage 1 and in methods with one module."""
    dtype: Dtype
    hidden_units: int
    sequence_length: int
    blocks: int
    heads: int
    dropout: float
    multimodal_weight: float

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and str(field.type).startswith("float"):
                object.__setattr__(self, field.name, float(value))  # 1 and 1.0 are the same trial
        one_of("method", self.method, METHODS)
        one_of("data.split", self.split, get_args(SplitKind))
        applies("data.test_share", self.test_share, self.split == "time")
        if self.test_share is not None and not 0 < self.test_share < 0.5:
            raise InputError(
                "`data.test_share` must be above 0 and below 0.5, so that something is left to "
                f"train on, but is {self.test_share}"
            )
        applies("data.sample_seed", self.sample_seed, self.sample_users is not None)
        one_of("train.mode", self.mode, get_args(Mode))
        one_of("train.dtype", self.dtype, get_args(Dtype))
        applies("peft.variant", self.variant, self.method in PEFT_METHODS)
        if self.variant is not None:
            one_of("peft.variant", self.variant, VARIANTS)
        facts = FACTS.get(self.variant) if self.variant else None
        applies("peft.bottleneck", self.bottleneck, self.variant == "iisan")
        applies("peft.dropout", self.adapter_dropout, facts is not None and facts.dropout)
        if facts is None or not facts.in_towers:
            applies("peft.last_layers", self.last_layers, False)
        if not exists(self.method, self.variant):
            raise InputError(
                "`methods` large_global needs a variant whose size follows its rank or bottleneck, "
                f"but `peft.variant` is {self.variant}"
            )
        for setting in SEARCHABLE:
            value = getattr(self, setting.name)
            applies(setting.given, value, setting.holds(self.method, self.variant))
            if value is not None:
                setting.rule(setting.given, value)
        for name, whole in (
            ("data.min_interactions", self.min_interactions),
            ("data.sample_users", self.sample_users),
            ("peft.last_layers", self.last_layers),
            ("peft.bottleneck", self.bottleneck),
            ("train.batch_size", self.batch_size),
            ("step_batches", self.step_batches),
            ("train.epochs", self.stage1_epochs),
            ("train.personal_epochs", self.stage3_epochs),
            ("train.validate_every", self.validate_every),
            ("model.hidden_units", self.hidden_units),
            ("model.sequence_length", self.sequence_length),
            ("model.blocks", self.blocks),
            ("model.heads", self.heads),
        ):
            if whole is not None:
                at_least(name, whole, 1)
        at_least("seed", self.seed, 0)
        at_least("data.sample_seed", self.sample_seed or 0, 0)
        at_least("train.patience", self.patience, 0)
        for name, share in (
            ("peft.dropout", self.adapter_dropout),
            ("model.dropout", self.dropout),
        ):
            if share is not None:
                between(name, share, 0.0, 1.0)
        positive("train.id_lr_scale", self.id_lr_scale)
        if self.hidden_units % self.heads:
            raise InputError(
                f"`model.hidden_units` must be a multiple of `model.heads` ({self.heads}), "
                f"but is {self.hidden_units}"
            )

    @property
    def data(self) -> DataSettings:
        """The part of the dataset that the trial uses, and its split."""
        defaults = DataSettings()
        return DataSettings(
            split=self.split,
            test_share=defaults.test_share if self.test_share is None else self.test_share,
            min_interactions=self.min_interactions,
            sample_users=self.sample_users,
            sample_seed=self.sample_seed or 0,
        )

    @property
    def modules(self) -> int:
        """Number of PEFT modules: one per group, or one that serves everyone."""
        return self.groups or 1 if self.method in PERSONAL_METHODS else 1

    @property
    def config_hash(self) -> str:
        """sha256 of the canonical JSON, 16 hexadecimal digits: the trial's identity."""
        return canonical_hash(dataclasses.asdict(self))


def canonical_hash(value: Any) -> str:
    """sha256 of a JSON-like value with sorted keys, as 16 hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
