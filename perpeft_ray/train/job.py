"""The shared inputs of a trial's stages."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from perpeft_ray.config import TrialConfig
from perpeft_ray.data.split import Split
from perpeft_ray.errors import InputError
from perpeft_ray.recommender.model import Recommender
from perpeft_ray.recommender.sampling import TrainingSampler
from perpeft_ray.train.build import build_model, computed_with
from perpeft_ray.train.collective import Collective
from perpeft_ray.train.evaluation import CatalogueContents
from perpeft_ray.train.memory import Units, bytes_of_an_item, bytes_to_keep, items_in_a_unit
from perpeft_ray.train.state import TrainState, new_state
from perpeft_ray.train.workspace import Workspace, open_split, prepare_here


@dataclass(frozen=True, eq=False)
class Job:
    """A trial's configuration with its data, model and workers."""

    config: TrialConfig
    workspace: Workspace
    split: Split
    sampler: TrainingSampler
    model: Recommender
    device: torch.device
    collective: Collective
    units: Units
    contents: CatalogueContents = field(default_factory=CatalogueContents)

    @property
    def computed(self) -> str:
        """See `computed_with`."""
        return computed_with(self.workspace.encoder, self.config.dtype, self.device)

    @property
    def stage_one_span(self) -> range:
        """Epochs of stage 1, numbered over the whole trial."""
        return range(1, self.config.stage1_epochs + 1)

    @property
    def stage_three_span(self) -> range:
        """Epochs of stage 3, or of the continued stage 1."""
        first = self.config.stage1_epochs + 1
        return range(first, first + self.config.stage3_epochs)

    def fresh_state(self, groups: Iterable[int], model: Recommender | None = None) -> TrainState:
        """The untrained model, or the given one, with a module per group."""
        model = model or self.model
        return new_state(model, {g: model.new_module() for g in groups}, self.config)


def open_job(
    config: TrialConfig,
    workspace: Workspace,
    collective: Collective,
    device: torch.device,
    memory_gb: float = 4.0,
) -> Job:
    """Check a trial against its data and build its model, seeded.

    Prepares here what another machine has prepared and this one does not see. `memory_gb` as in
    `run_trial`. Raises InputError for more groups than users.
    """
    prepare_here(workspace, config.dataset, config.data)
    split = open_split(workspace)
    if config.groups is not None and config.groups > split.num_users:
        raise InputError(
            "`grouping.groups` must be between 1 and the number of users "
            f"({split.num_users}), but is {config.groups}"
        )
    model = build_model(config, workspace, device)
    memory = bytes_to_keep(memory_gb, device)
    item_bytes = collective.share(lambda: bytes_of_an_item(model, model.new_module()))
    items = items_in_a_unit(item_bytes, device)
    return Job(
        config=config,
        workspace=workspace,
        split=split,
        sampler=TrainingSampler(split.train, split.num_items, config.sequence_length),
        model=model,
        device=device,
        collective=collective,
        units=Units(items, int(memory / max(items * item_bytes, 1.0))),
    )
