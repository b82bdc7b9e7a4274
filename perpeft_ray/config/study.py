"""The configuration of a study: nested, with the command line's dotted names."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Literal

from perpeft_ray.config.methods import PEFT_METHODS, Method, exists
from perpeft_ray.config.rules import at_least, between, distinct, positive
from perpeft_ray.config.searchable import SEARCHABLE, VARIED, Searchable
from perpeft_ray.config.settings import (
    SEARCH,
    DataSettings,
    GroupingSettings,
    LossSettings,
    MetricsSettings,
    Mode,
    ModelSettings,
    PeftSettings,
    SearchSettings,
    TrainSettings,
)
from perpeft_ray.config.trial import TrialConfig
from perpeft_ray.config.variants import FACTS, Variant
from perpeft_ray.errors import InputError

AUTO = "auto"
"""Stands for the default encoder of the data, chosen before a study begins."""


@dataclass(frozen=True)
class StudyConfig:
    """A study: what to search, compare and repeat."""

    dataset: str = "toyshop"
    """toyshop[:SEED], parquet:PATH, release:PATH#NAME or amazon2023:RAW_DIR#CATEGORY."""
    encoder: str = AUTO
    """toyshop-clip, a dual encoder's path or hub name, text:PATH, or pair:TEXT,IMAGE.
    auto: toyshop-clip for the toyshop; for other data a CLIP, or a text encoder without images.
    Where their weights are unavailable, auto takes toyshop-clip with a warning."""
    storage: str = "results"
    """Folder of studies, or its URI (s3://…); results go to <storage>/<study>/."""
    study: str = "ablation_peft"
    """The study's name."""
    workers: int = 1
    """Ray Train workers per trial."""
    cpus_per_worker: int = 1
    """CPU threads per worker."""
    gpus_per_worker: float | None = None
    """GPUs per worker, also a fraction; 0: train on the CPU.
    None: 1 if Ray has GPUs (0.25 for encoders under 50 million parameters), else 0."""
    memory_gb: float = 4.0
    """Memory that a worker's training step may keep for its backward pass.
    The rest is computed again, which takes longer but gives the same result."""
    log: tuple[Literal["mlflow", "wandb"], ...] = ()
    """Trackers besides TensorBoard: mlflow, wandb; install each first."""
    start_timeout_s: float = 20.0
    """Seconds to wait for room on Ray for a trial; raise it on a cluster that grows on demand."""
    seeds: tuple[int, ...] = (0,)
    """Training seeds of the ablation; the search uses the first."""
    methods: tuple[Method, ...] = (
        "popularity",
        "item_knn",
        "without_mm",
        "frozen_mm",
        "global",
        "perpeft",
        "without_group_negatives",
        "random_grouping",
    )
    """Methods of the ablation: two simple baselines, and rows of the paper's Tables 2 and 3."""
    data: DataSettings = field(default_factory=DataSettings)
    peft: PeftSettings = field(default_factory=PeftSettings)
    grouping: GroupingSettings = field(default_factory=GroupingSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    search: SearchSettings = field(default_factory=SearchSettings)

    def __post_init__(self) -> None:
        if self.encoder == AUTO and self.is_toyshop:
            object.__setattr__(self, "encoder", "toyshop-clip")
        at_least("workers", self.workers, 1)
        at_least("cpus_per_worker", self.cpus_per_worker, 1)
        between("gpus_per_worker", self.gpus, 0.0, math.inf)
        if self.gpus > 1 and self.gpus % 1:
            raise InputError(
                "`gpus_per_worker` must be a whole number above 1, or a fraction of one, but is "
                f"{self.gpus_per_worker}"
            )
        positive("memory_gb", self.memory_gb)
        positive("start_timeout_s", self.start_timeout_s)
        if self.log:
            distinct("log", self.log)
        if not self.study or set(self.study) & set("/\\\0") or self.study.startswith("."):
            raise InputError(f"`study` must be a plain folder name, but is {self.study!r}")
        for name, values in (
            ("seeds", self.seeds),
            ("methods", self.methods),
            ("search.variants", self.search.variants),
            *((f"search.{s.choices}", getattr(self.search, s.choices)) for s in SEARCHABLE),
        ):
            distinct(name, values)
        for setting in SEARCHABLE:
            ends = getattr(self.search, setting.range) if setting.range else None
            if ends is not None and not 0 < ends[0] < ends[1] < math.inf:
                raise InputError(
                    f"`search.{setting.range}` must be two positive numbers, the lower first, but "
                    f"is {ends[0]:g} {ends[1]:g}"
                )
        at_least("search.trials", self.search.trials, 1)
        at_least("search.max_concurrent", self.search.max_concurrent, 1)
        at_least("search.grace_epochs", self.search.grace_epochs, 1)
        for seed in self.seeds:
            at_least("seeds", seed, 0)
        for setting in SEARCHABLE:
            for value in self.values(setting.name):
                setting.rule(self.option(setting.name), value)
        self._try_every_value()

    @property
    def is_toyshop(self) -> bool:
        """Whether the data are the embedded catalogue, for which all defaults are sized."""
        return self.dataset.partition(":")[0] == "toyshop"

    @property
    def mode(self) -> Mode:
        """The training mode, with the default resolved from the number of workers."""
        return self.train.mode or ("sequential" if self.workers <= 1 else "parallel")

    @property
    def gpus(self) -> float:
        """`gpus_per_worker`; 0 before Ray is asked for its GPUs."""
        return self.gpus_per_worker or 0.0

    def trial(
        self,
        method: Method,
        *,
        seed: int,
        variant: Variant | None = None,
        **given: float | None,
    ) -> TrialConfig:
        """A trial of this study; settings that do not apply to the method are dropped to None.

        `given`: values of `SEARCHABLE` settings by name; others take their first value.

        `without_group_negatives` means a conditioning weight of 0, `large_global` one module as
        large as all `groups` modules together. In parallel mode a step has one batch per group, in
        every stage and for every method; methods without groups use the study's largest number of
        groups.
        """

        def value(setting: Searchable) -> Any:
            if not setting.holds(method, variant):
                return None
            if method in setting.by_definition:
                return setting.by_definition[method]
            chosen = given.get(setting.name)
            return self.values(setting.name)[0] if chosen is None else chosen

        if unknown := given.keys() - set(VARIED):
            raise TypeError(f"no searchable settings: {', '.join(sorted(unknown))}")
        variant = variant if method in PEFT_METHODS else None
        facts = FACTS.get(variant) if variant else None
        groups: Any = given.get("groups")
        searched = {setting.name: value(setting) for setting in SEARCHABLE}
        times = groups or 1 if method == "large_global" else 1
        if searched["rank"] is not None:
            searched["rank"] *= times
        return TrialConfig(
            dataset=self.dataset,
            split=self.data.split,
            test_share=self.data.test_share if self.data.split == "time" else None,
            min_interactions=self.data.min_interactions,
            sample_users=self.data.sample_users,
            sample_seed=None if self.data.sample_users is None else self.data.sample_seed,
            encoder=self.encoder,
            method=method,
            variant=variant,
            last_layers=self.peft.last_layers if facts and facts.in_towers else None,
            bottleneck=times * self.peft.bottleneck if variant == "iisan" else None,
            adapter_dropout=self.peft.dropout if facts and facts.dropout else None,
            seed=seed,
            id_lr_scale=self.train.id_lr_scale,
            batch_size=self.train.batch_size,
            stage1_epochs=self.train.epochs,
            stage3_epochs=self.train.personal_epochs,
            validate_every=self.train.validate_every,
            patience=self.train.patience,
            mode=self.mode,
            step_batches=groups or max(self.values("groups")) if self.mode == "parallel" else 1,
            dtype=self.train.dtype,
            hidden_units=self.model.hidden_units,
            sequence_length=self.model.sequence_length,
            blocks=self.model.blocks,
            heads=self.model.heads,
            dropout=self.model.dropout,
            **searched,
        )

    def values(self, name: str) -> tuple[Any, ...]:
        """Values of a searchable setting: the given one, else those of `search`.

        `name`: variant, or one of `VARIED`. For a range: its geometric mean, then its two ends.
        """
        if name == "variant":
            given, choices = self.peft.variant, self.search.variants
            return tuple(choices) if given == SEARCH else (given,)
        setting = _named(name)
        given_value = attrgetter(setting.given)(self)
        if given_value != SEARCH:
            return (given_value,)
        ends = self.range_of(name)
        if ends is not None:
            return (math.sqrt(ends[0] * ends[1]), *ends)
        return tuple(getattr(self.search, setting.choices))

    def option(self, name: str) -> str:
        """The dotted name of the option that a searchable setting's `values` come from."""
        setting = _named(name)
        searched = attrgetter(setting.given)(self) == SEARCH
        return f"search.{setting.choices}" if searched else setting.given

    def range_of(self, name: str) -> tuple[float, float] | None:
        """The log-uniform range of a searched setting; None if it has a list of values."""
        setting = _named(name)
        if setting.range is None or attrgetter(setting.given)(self) != SEARCH:
            return None
        return getattr(self.search, setting.range)  # type: ignore[no-any-return]  # by its name

    def _try_every_value(self) -> None:
        """Build a trial with every value of every setting, to report bad ones at once."""
        names = ("variant", *VARIED)
        values = {name: self.values(name) for name in names}
        first = {name: values[name][0] for name in names}
        for seed in self.seeds:
            for method in self.methods:
                for variant in values["variant"]:
                    if exists(method, variant):
                        self.trial(method, seed=seed, **{**first, "variant": variant})
        # Report a bad rank even if the first variant has none.
        for name in names:
            for value in values[name]:
                for variant in values["variant"]:
                    self.trial("perpeft", seed=0, **{**first, "variant": variant, name: value})


def _named(name: str) -> Searchable:
    return next(setting for setting in SEARCHABLE if setting.name == name)
