"""One trial from configuration to outcome: the three stages, selection and the one reading of test.

Plain torch: it runs in pytest, in a Ray Tune function or in every worker of Ray Train alike.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from perpeft_ray.config import (
    GROUPED_METHODS,
    PERSONAL_METHODS,
    VECTOR_METHODS,
    TrialConfig,
)
from perpeft_ray.data.split import LeaveOneOut
from perpeft_ray.errors import InputError
from perpeft_ray.recommender.model import Recommender
from perpeft_ray.recommender.sampling import TrainingSampler
from perpeft_ray.recommender.vectors import VectorRecommender
from perpeft_ray.train.build import (
    build_model,
    build_vectors,
    encoder_parameters,
    trainable_parameters,
)
from perpeft_ray.train.collective import Alone, Collective
from perpeft_ray.train.epoch import StageData, batches_per_group, train_epoch
from perpeft_ray.train.evaluation import evaluate, metrics_of, user_states
from perpeft_ray.train.grouping import Grouping, group_items, group_users, owners
from perpeft_ray.train.memory import PeakMemory
from perpeft_ray.train.outcome import EpochRecord, TrialOutcome, UserRanks
from perpeft_ray.train.stage_cache import Best, StageOne, cached_stage_one, stage_one_key
from perpeft_ray.train.state import (
    TrainState,
    load_optimizers,
    load_weights,
    new_state,
    optimizer_tensors,
    weights,
)
from perpeft_ray.train.trial_cache import Trained, read_trained, trial_key, write_trained
from perpeft_ray.train.workspace import Workspace, open_split

Report = Callable[[EpochRecord], None]


def run_trial(
    config: TrialConfig,
    workspace: Workspace,
    report: Report,
    *,
    test: bool,
    collective: Collective | None = None,
    device: torch.device | None = None,
) -> TrialOutcome:
    """Train and evaluate one configuration.

    Args:
        report: called after every epoch, on every worker, also for those that were trained before
            and come from a cache. It may raise to stop the trial.
        test: whether test is read, once, for the epoch that validation selected.
        collective: the workers that share this trial; None: this process alone. Every worker
            returns the same outcome.
        device: where to compute; None: the GPU where this process sees one (Ray shows a trial only
            those that it was given), else the CPU.

    Raises InputError for more groups than users, FloatingPointError for a loss that is not finite.
    """
    return _Trial(config, workspace, report, collective or Alone(), device).run(test=test)


class _Trial:
    """The parts of a trial that its stages share."""

    def __init__(
        self,
        config: TrialConfig,
        workspace: Workspace,
        report: Report,
        collective: Collective,
        device: torch.device | None,
    ) -> None:
        self.config = config
        self.workspace = workspace
        self.report = report
        self.epochs: list[EpochRecord] = []
        self.collective = collective
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.memory = PeakMemory(self.device)
        self.split: LeaveOneOut = open_split(workspace)
        if collective.world_size > 1 and config.mode == "sequential":
            raise InputError(
                "`workers` must be 0 or 1 in sequential mode (a step is one group's batch), but "
                f"is {collective.world_size}"
            )
        if config.groups is not None and config.groups > self.split.num_users:
            raise InputError(
                "`grouping.groups` must be between 1 and the number of users "
                f"({self.split.num_users}), but is {config.groups}"
            )
        self.sampler = TrainingSampler(
            self.split.train, self.split.num_items, config.sequence_length
        )
        self.model: Recommender = build_model(config, workspace, self.device)
        self.evaluate_seconds = 0.0
        self.epochs_in_all = config.stage1_epochs + config.stage3_epochs

    def run(self, *, test: bool) -> TrialOutcome:
        trained, state = self._trained()
        grouping = trained.grouping
        everyone = np.zeros(self.split.num_users, dtype=np.int32)
        test_ranks = np.full(self.split.num_users, -1, dtype=np.int64)
        if test:
            load_weights(state, trained.best.weights)
            test_ranks = self._ranks(state, grouping, "test")
        return TrialOutcome(
            selected_epoch=trained.best.epoch,
            valid=trained.best.valid,
            test=metrics_of(test_ranks) if test else None,
            users_evaluated=len(self.split.evaluable),
            encoder_parameters=(
                encoder_parameters(self.workspace.encoder) if self.model.tower else 0
            ),
            trainable_parameters=trainable_parameters(self.config, state.model),
            stage1_seconds=trained.stage1_seconds,
            stage2_seconds=trained.stage2_seconds,
            stage3_seconds=trained.stage3_seconds,
            evaluate_seconds=trained.evaluate_seconds + self.evaluate_seconds,
            peak_memory_mb=self.memory.megabytes(),
            world_size=self.collective.world_size,
            device=self.device.type,
            users=UserRanks(
                user_id=self.split.user_ids,
                group=everyone - 1 if grouping is None else grouping.valid,
                test_group=everyone - 1 if grouping is None else grouping.test,
                valid_rank=trained.best.valid_ranks,
                test_rank=test_ranks,
            ),
        )

    def _trained(self) -> tuple[Trained, TrainState]:
        """The trial after its last epoch, trained here or, where it was before, read."""
        # Workers hold their own groups only; what they trained is not kept.
        alone = self.collective.world_size == 1
        entry = self.workspace.trials / trial_key(self.config, self.workspace.fingerprint)
        kept = read_trained(entry) if alone else None
        if kept is not None:
            for record in kept.epochs:
                self.report(record)
            personal = self.config.method in PERSONAL_METHODS
            groups = range(self.config.groups or 1) if personal else [0]
            return kept, self._fresh_state(groups, self._final_model(kept.grouping))
        trained, state = self._train_all()
        if alone:
            write_trained(trained, entry)
        return trained, state

    def _train_all(self) -> tuple[Trained, TrainState]:
        first = self._stage_one()
        grouping, stage2_seconds = None, 0.0
        if self.config.method in GROUPED_METHODS:
            started = time.perf_counter()
            grouping = self._stage_two(first)
            stage2_seconds = time.perf_counter() - started
        started = time.perf_counter()
        state, best = (
            self._stage_three(first, grouping)
            if grouping is not None and self.config.method in PERSONAL_METHODS
            else self._continue_stage_one(first, grouping)
        )
        evaluate_seconds, self.evaluate_seconds = self.evaluate_seconds, 0.0
        trained = Trained(
            best=best,
            grouping=grouping,
            epochs=self.epochs,
            stage1_seconds=first.train_seconds,
            stage2_seconds=stage2_seconds,
            stage3_seconds=time.perf_counter() - started - evaluate_seconds,
            evaluate_seconds=first.evaluate_seconds + evaluate_seconds,
        )
        return trained, state

    def _tell(self, record: EpochRecord) -> None:
        self.epochs.append(record)
        self.report(record)

    def _fresh_state(self, groups: Iterable[int], model: Recommender | None = None) -> TrainState:
        """The model with a module for each of these groups, as initialised."""
        model = model or self.model
        return new_state(model, {g: model.new_module() for g in groups}, self.config)

    def _final_model(self, grouping: Grouping | None) -> Recommender:
        """The model of stage 3: with vectors of users or groups where the method has them."""
        if self.config.method not in VECTOR_METHODS:
            return self.model
        return build_vectors(self.config, self.model, grouping, self.split.num_users)

    def _stage_one(self) -> StageOne:
        """Stage 1 from the cache, or computed by the first worker that asks for it."""
        # Several workers must report together, so a stage 1 in progress is not reported live then.
        live = self.collective.world_size == 1
        key = stage_one_key(self.config, self.workspace.fingerprint)
        stage, found = cached_stage_one(
            self.workspace.stages, key, lambda: self._compute_stage_one(live=live)
        )
        if found or not live:
            for record in stage.epochs:
                self._tell(record)
        return stage

    def _compute_stage_one(self, *, live: bool) -> StageOne:
        state = self._fresh_state([0])
        epochs: list[EpochRecord] = []

        def keep(record: EpochRecord) -> None:
            epochs.append(record)
            if live:
                self._tell(record)

        before = self.evaluate_seconds
        started = time.perf_counter()
        span = range(1, self.config.stage1_epochs + 1)
        best = self._train(state, self._global_data(), None, span, 1, None, keep, Alone())
        evaluate_seconds, self.evaluate_seconds = self.evaluate_seconds - before, before
        assert best is not None  # the last epoch of a stage is always validated
        return StageOne(
            weights=weights(state),
            optimizers=optimizer_tensors(state),
            best=best,
            epochs=epochs,
            train_seconds=time.perf_counter() - started - evaluate_seconds,
            evaluate_seconds=evaluate_seconds,
        )

    def _stage_two(self, first: StageOne) -> Grouping:
        """Group the users by their outputs under the global module; the same on every worker."""
        config = self.config
        assert config.groups is not None
        state = self._fresh_state([0])
        load_weights(state, first.weights)
        module, length = state.modules[0], config.sequence_length
        grouping = group_users(
            user_states(self.model, module, self.split, "valid", length),
            user_states(self.model, module, self.split, "test", length),
            config.groups,
            config.seed,
            shuffle=config.method == "random_grouping",
        )
        both = torch.from_numpy(np.stack([grouping.valid, grouping.test])).to(self.device)
        self.collective.broadcast_(both)  # machines may round differently
        valid, test = both.cpu().numpy()
        return dataclasses.replace(grouping, valid=valid, test=test)

    def _stage_three(self, first: StageOne, grouping: Grouping) -> tuple[TrainState, Best]:
        """Personalised modules, each from a copy of the global one; SASRec goes on from stage 1."""
        config = self.config
        assert config.groups is not None
        assert config.conditioning_weight is not None
        trainable = self.sampler.trainable_users
        users = {
            group: trainable[grouping.valid[trainable] == group] for group in range(config.groups)
        }
        pools = group_items(self.split.train, grouping.valid, config.groups)
        data = StageData(3, self.sampler, users, dict(enumerate(pools)), config.conditioning_weight)
        owner = owners(batches_per_group(users, config.batch_size), self.collective.world_size)
        mine = np.flatnonzero(owner == self.collective.rank).tolist()
        state = self._fresh_state(mine)
        copies = {
            name.replace("modules.0.", f"modules.{group}.", 1): tensor
            for name, tensor in first.weights.items()
            for group in (mine or [0])
        }
        load_weights(state, copies)
        span = range(config.stage1_epochs + 1, self.epochs_in_all + 1)
        best = self._train(state, data, grouping, span, 3, None, self._tell, self.collective)
        assert best is not None
        return state, best

    def _continue_stage_one(
        self, first: StageOne, grouping: Grouping | None
    ) -> tuple[TrainState, Best]:
        """For methods with one module: as many epochs more as PerPEFT has in all."""
        state = self._fresh_state([0], self._final_model(grouping))
        load_weights(state, {**weights(state), **first.weights})  # vectors begin here
        load_optimizers(state, first.optimizers)
        span = range(self.config.stage1_epochs + 1, self.epochs_in_all + 1)
        data = self._global_data()
        # Stage 1's best epoch is one of this method's, unless it lacks the method's vectors.
        so_far = None if self.config.method in VECTOR_METHODS else first.best
        best = self._train(state, data, grouping, span, 3, so_far, self._tell, Alone())
        assert best is not None
        return state, best

    def _train(
        self,
        state: TrainState,
        data: StageData,
        grouping: Grouping | None,
        epochs: range,
        stage: int,
        best: Best | None,
        report: Report,
        collective: Collective,
    ) -> Best | None:
        """Train for these epochs, validate where due, and return the best epoch so far."""
        for epoch in epochs:
            started = time.perf_counter()
            loss = train_epoch(state, data, epoch, self.config, collective)
            valid = None
            if (epoch - epochs.start + 1) % self.config.validate_every == 0 or epoch == epochs[-1]:
                ranks = self._ranks(state, grouping, "valid", collective)
                valid = metrics_of(ranks)
                if best is None or valid.ndcg_at_20 > best.valid.ndcg_at_20:
                    best = Best(epoch, valid, weights(state), ranks)
            report(
                EpochRecord(
                    stage=stage,
                    epoch=epoch,
                    loss=loss,
                    seconds=time.perf_counter() - started,
                    valid=valid,
                    best_valid_ndcg_at_20=best.valid.ndcg_at_20 if best else None,
                    shared=False,
                )
            )
        return best

    def _ranks(
        self,
        state: TrainState,
        grouping: Grouping | None,
        part: Literal["valid", "test"],
        collective: Collective | None = None,
    ) -> NDArray[np.int64]:
        """Every user's rank under the module of their group, or with their group's vector."""
        started = time.perf_counter()
        modules = np.zeros(self.split.num_users, dtype=np.int32)
        if grouping is not None:
            groups = grouping.valid if part == "valid" else grouping.test
            if isinstance(state.model, VectorRecommender):
                state.model.owners = groups
            else:
                modules = groups
        ranks = evaluate(
            state.model,
            state.modules,
            modules,
            self.split,
            part,
            self.config.sequence_length,
            self.collective if collective is None else collective,
        )
        self.evaluate_seconds += time.perf_counter() - started
        return ranks

    def _global_data(self) -> StageData:
        """Stage 1: one group of all users, negatives from all items."""
        return StageData(1, self.sampler, {0: self.sampler.trainable_users}, {0: None}, 0.0)
