"""PerPEFT with LoRA as a plain program, measured beside ours in the same run.

transformers' CLIP and peft's LoRA in float32, one adapter per group. Every position of every user's
window and every negative is encoded, repeats too; titles are padded to the model's 77 positions;
an evaluation encodes the catalogue for every group and ranks one user at a time. Pixels, samples,
SASRec and the projector are ours, so a plain program that decodes images is slower still.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import peft
import torch
import torch.nn.functional as F
from _steps import Bench
from ranking import one_at_a_time
from torch import Tensor
from transformers import CLIPModel
from transformers.image_utils import (  # type: ignore[attr-defined]  # imported there
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)

from perpeft_ray.encoder.rows import CatalogueRows
from perpeft_ray.recommender.sampling import TrainingBatch, last_inputs, select
from perpeft_ray.train.epoch import ID_NORM_WEIGHT, StageData
from perpeft_ray.train.workspace import open_catalogue

_ITEMS_AT_ONCE = 128
"""Items per batch in an evaluation."""


class Plain:
    """The model of a trial, with the current weights of `bench`; LoRA in all q and v layers."""

    def __init__(self, bench: Bench) -> None:
        self.job, self.groups = bench.job, bench.groups
        config, model = bench.job.config, bench.job.model
        assert config.rank is not None
        assert config.adapter_dropout is not None
        assert model.tower is not None
        self.catalogue = CatalogueRows(open_catalogue(bench.job.workspace))
        self.backbone = copy.deepcopy(model.backbone)
        self.projectors = []
        lora = peft.LoraConfig(
            r=config.rank,
            lora_alpha=2 * config.rank,
            lora_dropout=config.adapter_dropout,
            target_modules=["q_proj", "v_proj"],
        )
        clip = CLIPModel.from_pretrained(bench.job.workspace.encoder, dtype=torch.float32)
        self.clip = peft.get_peft_model(clip, lora, adapter_name="0")
        for group, module in bench.state.modules.items():
            if group > 0:
                self.clip.add_adapter(str(group), lora)
            self.projectors.append(copy.deepcopy(model.tower.projector))
            with torch.no_grad():
                for name, parameter in self._named(group).items():
                    parameter.copy_(module[name])
        rest: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
        own = [list(self._named(group).values()) for group in bench.state.modules]
        self.module_optimizers = [torch.optim.AdamW(parameters, **rest) for parameters in own]
        self.backbone_optimizer = torch.optim.AdamW(self.backbone.parameters(), **rest)

    def step(self, data: StageData) -> float:
        """One step of group 0's users."""
        self._train(True)
        self.clip.set_adapter("0")
        rng, weight = np.random.default_rng(0), data.conditioning_weight
        batch = data.sampler.sample(data.users[0], rng, pool=data.pools[0], weight=weight)
        loss = self.loss(batch, 0)
        table = self.backbone.item_embedding.weight
        (loss + ID_NORM_WEIGHT * table.norm()).backward()
        for optimizer in (self.backbone_optimizer, self.module_optimizers[0]):
            optimizer.step()
            optimizer.zero_grad()
        return loss.item()

    def loss(self, batch: TrainingBatch, group: int) -> Tensor:
        """Mean over positions of BCE(positive) + BCE(negative)."""
        items = batch.items()  # [3, B, T]
        real = torch.as_tensor(batch.inputs > 0)
        inputs, positives, negatives = self._embed(items.reshape(-1), group).view(*items.shape, -1)
        outputs = self.backbone(inputs, ~real)
        liked, other = ((outputs * x).sum(-1)[real] for x in (positives, negatives))
        bce = F.binary_cross_entropy_with_logits
        return bce(liked, torch.ones_like(liked)) + bce(other, torch.zeros_like(other))

    @torch.no_grad()
    def evaluated_loss(self, batch: TrainingBatch, group: int) -> float:
        """The loss under a group's module without dropout."""
        self._train(False)
        self.clip.set_adapter(str(group))
        return self.loss(batch, group).item()

    @torch.no_grad()
    def evaluate(self) -> np.ndarray:
        """Validation ranks of all users, int64 [U], each under the module of their group."""
        self._train(False)
        split, length = self.job.split, self.job.config.sequence_length
        known, users = split.known("valid"), split.evaluated("valid")
        ranks = np.full(split.num_users, -1)
        chunks = torch.arange(split.num_items + 1).split(_ITEMS_AT_ONCE)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        for group in range(len(self.projectors)):
            self.clip.set_adapter(str(group))
            embeddings = torch.cat([self._embed(chunk.numpy(), group) for chunk in chunks])
            for user in users[self.groups[users] == group]:
                one = np.array([user])
                items = torch.as_tensor(last_inputs(known, one, length))
                state = self.backbone(embeddings[items], items == 0)[:, -1]
                target = split.valid_item[one]
                ranks[user] = one_at_a_time(state, embeddings, target, select(known, one))[0]
        return ranks

    def _embed(self, items: np.ndarray, group: int) -> Tensor:
        """Embeddings of items [n], 0 for padding: [n, D]."""
        real = items > 0
        batch = self.catalogue.batch(items[real], torch.device("cpu"))
        assert batch.pixels is not None
        longest = self.clip.config.text_config.max_position_embeddings
        pad = (0, longest - batch.token_ids.shape[1])
        mean, deviation = (
            torch.tensor(x).view(3, 1, 1) for x in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
        )
        image = self.clip.get_image_features(pixel_values=(batch.pixels / 255 - mean) / deviation)
        text = self.clip.get_text_features(
            input_ids=F.pad(batch.token_ids, pad), attention_mask=F.pad(batch.attention_mask, pad)
        )
        features = torch.cat([image.pooler_output, text.pooler_output], dim=-1)
        embedded = self.backbone.item_embedding(torch.as_tensor(items)).clone()
        embedded[real] += self.job.model.weight * self.projectors[group](features)
        return embedded  # type: ignore[no-any-return]  # nn.Module's call is untyped

    def _named(self, group: int) -> dict[str, torch.nn.Parameter]:
        """A group's parameters under the names of our modules."""
        adapter = f".{group}.weight"
        lora = {
            name.replace("base_model.model.", "encoder.towers.model.").replace(
                adapter, ".default.weight"
            ): parameter
            for name, parameter in self.clip.named_parameters()
            if "lora_" in name and name.endswith(adapter)
        }
        projector = self.projectors[group].named_parameters()
        return lora | {f"projector.{name}": parameter for name, parameter in projector}

    def _train(self, mode: bool) -> None:
        for module in (self.clip, self.backbone, *self.projectors):
            module.train(mode)
