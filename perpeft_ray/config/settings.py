"""The settings of a study by topic, with their defaults; `StudyConfig` holds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from perpeft_ray.config.rules import between, distinct
from perpeft_ray.config.variants import PAPER_VARIANTS, Variant

LONGEST_LIST = 100
"""The largest measured length K of recommended lists."""
SplitKind = Literal["leave_one_out", "time"]
Mode = Literal["sequential", "parallel"]
Dtype = Literal["auto", "float32", "bfloat16"]
ToSearch = Literal["search"]
SEARCH: ToSearch = "search"
"""The value that leaves a setting to the search."""


@dataclass(frozen=True)
class DataSettings:
    """The part of the dataset that is used, and how it is split."""

    split: SplitKind = "leave_one_out"
    """leave_one_out (the paper's): each user's last item is test, the one before it validation.
    time: train on everything before one point in time, the same for all users."""
    test_share: float = 0.1
    """For the time split: the latest share of all interactions is test, as many before validate."""
    min_interactions: int = 1
    """Drop users with fewer interactions."""
    sample_users: int | None = None
    """Use only this many users, drawn at random, for a first look; None: all."""
    sample_seed: int = 0
    """Seed of that draw."""


@dataclass(frozen=True)
class PeftSettings:
    """The PEFT module of each group."""

    variant: Variant | ToSearch = SEARCH
    """PEFT variant, or search. `perpeft variants` says what each is."""
    rank: int | ToSearch = SEARCH
    """Rank; its meaning depends on the variant, some ignore it. Paper: 4."""
    last_layers: int | None = 1
    """Adapt only this many last layers of each tower; None: all (the paper's). Not for IISAN."""
    bottleneck: int = 32
    """Width of IISAN's bottleneck blocks. Paper: 32."""
    dropout: float = 0.1
    """Dropout on the input of adapters that have one (LoRA and its kin). Paper: 0.1."""


@dataclass(frozen=True)
class GroupingSettings:
    """How users are grouped (stage 2)."""

    groups: int | ToSearch = SEARCH
    """Number of K-means clusters. Paper: 8."""


@dataclass(frozen=True)
class LossSettings:
    """The conditioning loss of stage 3."""

    conditioning_weight: float | ToSearch = SEARCH
    """Weight of negatives from the group's own items, 0 to 1. Paper: 1."""


@dataclass(frozen=True)
class ModelSettings:
    """SASRec, the shared backbone; defaults are the paper's, except multimodal_weight."""

    hidden_units: int = 32
    """Width D of item embeddings and SASRec."""
    sequence_length: int = 10
    """Latest interactions that SASRec sees."""
    blocks: int = 2
    """Transformer blocks."""
    heads: int = 4
    """Attention heads."""
    dropout: float = 0.3
    """Dropout in SASRec."""
    multimodal_weight: float | ToSearch = SEARCH
    """Weight w of the projected multimodal embedding beside the id embedding. Paper: 0.5."""


@dataclass(frozen=True)
class TrainSettings:
    """Optimisation. Defaults are the toyshop preset; `--preset paper` has the paper's."""

    lr: float | ToSearch = SEARCH
    """AdamW's learning rate for SASRec and projectors. Paper: 1e-4."""
    peft_lr_scale: float | ToSearch = SEARCH
    """The PEFT module's learning rate as a multiple of lr. Paper: 1."""
    id_lr_scale: float = 1.0
    """The id embedding's learning rate as a multiple of lr. Paper: 1."""
    weight_decay: float | ToSearch = SEARCH
    """AdamW's weight decay. Paper: 1e-5 to 5e-4, by data set."""
    batch_size: int = 64
    """Users per batch. Paper: 16."""
    epochs: int = 8
    """Epochs of stage 1, the global module. Paper: 10."""
    personal_epochs: int = 16
    """Epochs of stage 3, the personalised modules; other methods train as many more. Paper: 20."""
    validate_every: int = 2
    """Epochs between two validations (the last epoch is always validated). Paper: 1."""
    patience: int = 0
    """End a stage after this many validations in a row without a new best; 0: never."""
    mode: Mode | None = None
    """A step is one group's batch (sequential, the paper's) or one batch of every group (parallel).
    None: sequential with one worker, parallel with more."""
    dtype: Dtype = "auto"
    """Compute type of frozen weights.
    auto: bfloat16 if the device multiplies it natively and the text tower is at least 128 wide."""


@dataclass(frozen=True)
class MetricsSettings:
    """Metrics to report beside the objective, NDCG@20."""

    k: tuple[int, ...] = (10, 20, 30)
    """Lengths K of recommended lists, up to 100, for HR, NDCG, MRR, coverage and popularity."""

    def __post_init__(self) -> None:
        distinct("metrics.k", self.k)
        for k in self.k:
            between("metrics.k", k, 1, LONGEST_LIST)


@dataclass(frozen=True)
class SearchSettings:
    """The search by Ray Tune and Optuna, and its choices."""

    trials: int = 6
    """Search trials of PerPEFT over all variants; a baseline has as many per variant."""
    max_concurrent: int = 2
    """Concurrent trials."""
    seed: int = 0
    """Seed of Optuna's sampler."""
    variants: tuple[Variant, ...] = PAPER_VARIANTS
    """Values of peft.variant. The first values of this and the next lists are tried first."""
    ranks: tuple[int, ...] = (4, 8)
    """Values of peft.rank."""
    groups: tuple[int, ...] = (6, 8)
    """Values of grouping.groups."""
    conditioning_weights: tuple[float, ...] = (0.5, 1.0)
    """Values of loss.conditioning_weight."""
    learning_rates: tuple[float, ...] = (6e-3, 1e-2)
    """Values of train.lr."""
    learning_rate: tuple[float, float] | None = None
    """Log-uniform range of train.lr instead of search.learning-rates: LOW HIGH."""
    multimodal_weights: tuple[float, ...] = (0.2,)
    """Values of model.multimodal-weight."""
    weight_decays: tuple[float, ...] = (0.01,)
    """Values of train.weight-decay."""
    peft_lr_scales: tuple[float, ...] = (0.3,)
    """Values of train.peft-lr-scale."""
    every_method: bool = False
    """Search for PerPEFT's ablations too; otherwise they take PerPEFT's settings."""
    pareto: bool = False
    """Search for accuracy and few trainable parameters together (without ASHA)."""
    asha: bool = True
    """Stop poor trials early (ASHA); their rows have status PRUNED."""
    grace_epochs: int = 3
    """Epochs of stage 3 before ASHA may stop a trial."""
