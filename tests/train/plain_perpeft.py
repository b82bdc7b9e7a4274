"""PerPEFT in slow, plain steps: the reference that trained trials are compared with.

Nothing of the package is used. The shop is read with pandas, the encoder is transformers' CLIP with
the adapters written into its weights, attention is torch's, negatives are drawn from lists. Initial
values and settings are given. There is no dropout.
Letters: U users, I items (0 is padding), T positions, D hidden units, G groups.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.cluster import KMeans
from torch import Tensor
from torch.func import functional_call
from transformers import AutoProcessor, CLIPModel

Weights = dict[str, Tensor]
"""Tensors by name: `backbone.*`, and `modules.<group>.*` for each group."""


class Shop:
    """Histories in time order, titles and images of a folder; items are 1..I in file order."""

    def __init__(self, folder: Path) -> None:
        items = pd.read_parquet(folder / "items.parquet")
        number = {item: k for k, item in enumerate(items["item_id"], start=1)}
        rows = pd.read_parquet(folder / "interactions.parquet")
        self.count = len(items)
        self.train: list[list[int]] = []
        self.valid: list[int | None] = []
        self.test: list[int | None] = []
        for _, own in rows.groupby("user_id", sort=False):
            history = [number[i] for i in own.sort_values("timestamp", kind="stable")["item_id"]]
            held_out = len(history) >= 3
            self.train.append(history[:-2] if held_out else history)
            self.valid.append(history[-2] if held_out else None)
            self.test.append(history[-1] if held_out else None)
        self.trainable = [u for u, history in enumerate(self.train) if len(history) >= 2]
        self.evaluable = [u for u, item in enumerate(self.valid) if item is not None]
        self.titles: list[str | None] = [t if isinstance(t, str) else None for t in items["title"]]
        self.images = [
            Image.open(folder / i).convert("RGB") if isinstance(i, str) else None
            for i in items["image"]
        ]

    def known(self, user: int, part: str) -> list[int]:
        """What is known of a user when `part` is predicted."""
        valid = self.valid[user]
        return self.train[user] + ([valid] if part == "test" and valid is not None else [])


class Encoder:
    """Frozen CLIP, and each PEFT variant as a change of its weights or a network beside it."""

    def __init__(
        self, path: Path, shop: Shop, variant: str | None, halves: tuple[str, ...]
    ) -> None:
        self.variant, self.halves = variant, halves
        self.clip = CLIPModel.from_pretrained(path).eval().requires_grad_(False)
        processor = AutoProcessor.from_pretrained(path, backend="pil")
        size = self.clip.config.vision_config.image_size
        blank = Image.new("RGB", (size, size))
        given = processor(
            text=[title or "" for title in shop.titles],
            images=[image or blank for image in shop.images],
            return_tensors="pt",
            padding=True,
            truncation=True,
        )
        self.inputs = {key: given[key] for key in ("input_ids", "attention_mask", "pixel_values")}
        self.has_title = torch.tensor([[t is not None] for t in shop.titles])
        self.has_image = torch.tensor([[i is not None] for i in shop.images])
        with torch.no_grad():
            out = self.clip(**self.inputs, output_hidden_states=True)
        ends = self.inputs["input_ids"].argmax(dim=1)
        if (eos := self.clip.config.text_config.eos_token_id) != 2:
            ends = (self.inputs["input_ids"] == eos).int().argmax(dim=1)
        rows = torch.arange(shop.count)
        text = torch.stack([s[rows, ends] for s in out.text_model_output.hidden_states], 1)
        image = torch.stack([s[:, 0] for s in out.vision_model_output.hidden_states], 1)
        # The stores of hidden states hold float16.
        self.text = text.half().float() * self.has_title[:, None]  # [I, K, W]
        self.image = image.half().float() * self.has_image[:, None]

    def features(self, module: Weights) -> Tensor:
        """[I, out]: image half, then text half; or IISAN's three towers."""
        own = {k.removeprefix("encoder."): v for k, v in module.items() if k.startswith("encoder.")}
        if self.variant == "iisan":
            return self._iisan({k.removeprefix("side."): v for k, v in own.items()})
        out = functional_call(self.clip, self._adapted(own), (), self.inputs)
        of = {
            "image": out.vision_model_output.pooler_output * self.has_image,
            "text": out.text_model_output.pooler_output * self.has_title,
        }
        return torch.cat([of[half] for half in self.halves], dim=1)

    def _adapted(self, own: Weights) -> Weights:
        """CLIP's weights with an adapter in them; every tensor of the adapter must have a place."""
        left = {k.removeprefix("towers.model."): v for k, v in own.items()}
        changed = {}
        towers = {"image": "vision_model.", "text": "text_model."}
        used = tuple(towers[half] for half in self.halves)
        for name, layer in self.clip.named_modules():
            if not isinstance(layer, torch.nn.Linear) or not name.startswith(used):
                continue
            kind = name.rsplit(".", 1)[-1]
            if self.variant == "lora" and kind in ("q_proj", "v_proj"):
                down = left.pop(f"{name}.lora_A.default.weight")  # [r, in]
                up = left.pop(f"{name}.lora_B.default.weight")  # [out, r]
                alpha_over_rank = 2.0
                changed[f"{name}.weight"] = layer.weight + alpha_over_rank * up @ down
            if self.variant == "ia3" and kind in ("k_proj", "v_proj"):
                scale = left.pop(f"{name}.ia3_l.default").flatten()  # [out]
                changed[f"{name}.weight"] = layer.weight * scale[:, None]
                changed[f"{name}.bias"] = layer.bias * scale
            if self.variant == "ia3" and kind == "fc1":
                changed[f"{name}.weight"] = layer.weight * left.pop(f"{name}.ia3_l.default")
        assert not left, f"the method has no place for {sorted(left)}"
        return changed

    def _iisan(self, p: Weights) -> Tensor:
        gates = torch.sigmoid(p["gates"])  # [3, K]

        def block(tower: str, layer: int, x: Tensor) -> Tensor:
            name = f"{tower}_blocks.{layer}"
            inner = F.gelu(F.linear(x, p[f"{name}.down.weight"], p[f"{name}.down.bias"]))
            return x + F.linear(inner, p[f"{name}.up.weight"], p[f"{name}.up.bias"])

        layers = range(self.text.shape[1])
        z = {"text": self.text[:, 0], "image": self.image[:, 0]}
        inter = torch.zeros_like(self.text[:, 0])
        for layer in layers:
            for row, (tower, h) in enumerate({"text": self.text, "image": self.image}.items()):
                a = gates[row, layer]
                mixed = z[tower] if layer == 0 else a * z[tower] + (1 - a) * h[:, layer]
                z[tower] = block(tower, layer, mixed)
            name = f"to_text.{layer}"
            to_text = F.linear(self.image[:, layer], p[f"{name}.weight"], p[f"{name}.bias"])
            a = gates[2, layer]
            inter = block("inter", layer, inter + a * self.text[:, layer] + (1 - a) * to_text)
        return torch.cat([z["text"], z["image"], inter], dim=1)


@dataclass
class Trace:
    """What a stage left: its weights after the last epoch, validation ranks by epoch."""

    weights: Weights
    ranks: dict[int, list[int]] = field(default_factory=dict)
    """Validation ranks of the evaluable users after each validated epoch."""
    weights_at: dict[int, Weights] = field(default_factory=dict)


class PlainPerPeft:
    """One trial: `config` is read by attribute, `initial` are the weights before training."""

    def __init__(self, config: Any, shop: Shop, encoder: Encoder | None, initial: Weights) -> None:
        self.c, self.shop, self.encoder = config, shop, encoder
        self.initial = {name: tensor.clone() for name, tensor in initial.items()}
        self.owners = ([0] * self._users, [0] * self._users)

    def stage_one(self) -> Trace:
        """One module for all users, negatives from all items."""
        self.backbone = _leaves(self.initial, "backbone.")
        self.modules = {0: _leaves(self.initial, "modules.0.")}
        self._new_optimizers()
        epochs = range(1, self.c.stage1_epochs + 1)
        return self._fit(epochs, 1, {0: self.shop.trainable}, {0: None}, 0.0, [0] * self._users)

    def continue_stage_one(self, vectors: Weights, owners: tuple[list[int], list[int]]) -> Trace:
        """Methods with one module train on: same optimisers, same kind of batches.

        `vectors` are what the method adds to the module; `owners`: whose vector each user has while
        training and validating, and while testing.
        """
        self.owners = owners
        new = {name: v.clone().requires_grad_() for name, v in vectors.items()}
        self.modules[0] |= new
        if new:
            added = {"params": list(new.values()), "lr": self.c.learning_rate}
            self.optimizers[0].add_param_group(added)
        users = {0: self.shop.trainable}
        return self._fit(self._later, 1, users, {0: None}, 0.0, [0] * self._users)

    def group(self) -> tuple[list[int], list[int]]:
        """Every user's group while training and validating, and while testing."""
        states = {part: self._states(part) for part in ("valid", "test")}
        kmeans = KMeans(self.c.groups, max_iter=100, n_init=10, random_state=self.c.seed)
        labels = kmeans.fit_predict(states["valid"])
        members = [np.flatnonzero(labels == k).tolist() for k in range(self.c.groups)]
        by_size = sorted(range(self.c.groups), key=lambda k: (-len(members[k]), members[k][:1]))
        number = np.argsort(by_size)
        valid = number[labels]
        if self.c.method == "random_grouping":
            valid = np.random.default_rng(self.c.seed).permutation(valid)
            return valid.tolist(), valid.tolist()
        return valid.tolist(), number[kmeans.predict(states["test"])].tolist()

    def stage_three(self, valid_groups: list[int]) -> Trace:
        """A module for each group, from the global one; negatives from the group's items."""
        groups = range(self.c.groups)
        self.modules = {
            g: {k: v.detach().clone().requires_grad_() for k, v in self.modules[0].items()}
            for g in groups
        }
        self._new_optimizers()
        users = {g: [u for u in self.shop.trainable if valid_groups[u] == g] for g in groups}
        pools: dict[int, list[int] | None] = {
            g: sorted(
                {i for u in range(self._users) if valid_groups[u] == g for i in self.shop.train[u]}
            )
            for g in groups
        }
        return self._fit(self._later, 3, users, pools, self.c.conditioning_weight, valid_groups)

    def ranks(self, part: str, groups: list[int]) -> list[int]:
        """Rank of each evaluable user's held-out item among all items that they do not know."""
        target_of = self.shop.valid if part == "valid" else self.shop.test
        owners = self.owners[part == "test"]
        with torch.no_grad():
            content = {g: self._content(g) for g in self.modules}
            found = []
            for u in self.shop.evaluable:
                known = self.shop.known(u, part)
                table = self._table(content[groups[u]], groups[u], owners[u])
                scores = (table @ self._outputs(table, [known])[0, -1]).tolist()
                target = target_of[u]
                assert target is not None
                others = [i for i in range(1, self.shop.count + 1) if i not in {*known, target}]
                found.append(sum(scores[i] >= scores[target] for i in others))
        return found

    def load(self, weights: Weights) -> None:
        """Put weights that `Trace.weights_at` kept back in place."""
        with torch.no_grad():
            for name, tensor in self._named().items():
                tensor.copy_(weights[name])

    @property
    def _users(self) -> int:
        return len(self.shop.train)

    @property
    def _later(self) -> range:
        return range(self.c.stage1_epochs + 1, self.c.stage1_epochs + self.c.stage3_epochs + 1)

    def _fit(
        self, epochs: range, stage: int, users: Any, pools: Any, weight: float, groups: Any
    ) -> Trace:
        trace = Trace({})
        for epoch in epochs:
            for pieces in self._steps(users, stage, epoch):
                self._step(pieces, pools, weight, (stage, epoch))
            if (epoch - epochs[0] + 1) % self.c.validate_every == 0 or epoch == epochs[-1]:
                trace.ranks[epoch] = self.ranks("valid", groups)
                trace.weights_at[epoch] = _copies(self._named())
        trace.weights = _copies(self._named())
        return trace

    def _steps(self, users: Any, stage: int, epoch: int) -> list[list[tuple[int, int, list[int]]]]:
        """Steps of pieces (group, number, users): one group's batch, or one of every group."""
        rng = np.random.default_rng([self.c.seed, stage, epoch])
        batches: dict[int, list[tuple[int, int, list[int]]]] = {}
        for group, members in users.items():
            count = math.ceil(len(members) / self.c.batch_size)
            parts = np.array_split(rng.permutation(members), count) if count else []
            batches[group] = [(group, k, part.tolist()) for k, part in enumerate(parts)]
        if self.c.mode == "parallel":
            longest = max(map(len, batches.values()))
            return [[own[k] for own in batches.values() if k < len(own)] for k in range(longest)]
        order = rng.permutation([g for g, own in batches.items() for _ in own])
        return [[batches[g].pop(0)] for g in order]

    def _step(self, pieces: Any, pools: Any, weight: float, when: tuple[int, int]) -> None:
        loss, positions = torch.zeros(()), 0
        for group, number, users in pieces:
            rng = np.random.default_rng([self.c.seed, *when, group, number])
            rng.integers(2**62)  # the dropout's stream
            pool = pools[group] if weight > 0 else None
            negatives = [(1.0, self._draw(users, pool, rng))]
            if pool is not None and weight < 1:
                negatives = [(weight, negatives[0][1]), (1 - weight, self._draw(users, None, rng))]
            content = self._content(group)
            for row, user in enumerate(users):
                table, history = (
                    self._table(content, group, self.owners[0][user]),
                    self.shop.train[user],
                )
                n = min(len(history) - 1, self.c.sequence_length)
                positions += n
                h = self._outputs(table, [history[:-1]])[0, -n:]  # [n, D]
                loss = loss - F.logsigmoid((h * table[history[-n:]]).sum(-1)).sum()
                for share, drawn in negatives:
                    scores = (h * table[drawn[row, -n:]]).sum(-1)
                    loss = loss - share * F.logsigmoid(-scores).sum()
        id_norm = self.backbone["item_embedding.weight"].norm()
        (loss / positions + 1e-6 * id_norm).backward()
        for key in ["backbone", *dict.fromkeys(group for group, *_ in pieces)]:
            if key in self.optimizers:
                self.optimizers[key].step()
                self.optimizers[key].zero_grad()
        for module in self.modules.values():
            assert all(p.grad is None for p in module.values())

    def _draw(self, users: list[int], pool: list[int] | None, rng: Any) -> np.ndarray:
        """Uniform over the pool's items that the user has not trained on; [B, T]."""
        everything = list(range(1, self.shop.count + 1))
        own = [set(self.shop.train[u]) for u in users]
        allowed = [[i for i in (everything if pool is None else pool) if i not in s] for s in own]
        high = np.array([[max(len(a), 1)] for a in allowed])
        places = rng.integers(high, size=(len(users), self.c.sequence_length))
        empty = [row for row, a in enumerate(allowed) if not a]
        drawn = np.array(
            [[(a or [0])[p] for p in row] for a, row in zip(allowed, places, strict=True)]
        )
        if empty:
            drawn[empty] = self._draw([users[row] for row in empty], None, rng)
        return drawn

    def _content(self, group: int) -> Tensor | None:
        """All items encoded and projected under a group's module, [I, D]."""
        if self.encoder is None:
            return None
        module = self.modules[group]
        p = {k.removeprefix("projector.layers."): v for k, v in module.items()}
        x = F.linear(self.encoder.features(module), p["0.weight"], p["0.bias"])
        x = F.relu(F.layer_norm(x, x.shape[-1:], p["1.weight"], p["1.bias"]))
        x = F.linear(x, p["3.weight"], p["3.bias"])
        return F.layer_norm(x, x.shape[-1:], p["4.weight"], p["4.bias"])

    def _table(self, content: Tensor | None, group: int, owner: int) -> Tensor:
        """e_i of all items for a user, [I+1, D]; row 0 is zero. `owner`: whose vector they have."""
        ids, module = self.backbone["item_embedding.weight"][1:], self.modules[group]
        if content is None:
            return F.pad(ids, (0, 0, 1, 0))
        if "vectors.vector" in module:
            vector = module["vectors.vector"][owner]
            if "vectors.gate.weight" in module:
                gate = F.linear(vector, module["vectors.gate.weight"], module["vectors.gate.bias"])
                content = content * torch.sigmoid(gate)
            else:
                content = content + vector
        return F.pad(ids + self.c.multimodal_weight * content, (0, 0, 1, 0))

    def _outputs(self, table: Tensor, histories: list[list[int]]) -> Tensor:
        """SASRec's outputs [B, T, D] for histories, of which the last T items count."""
        T, D, b = self.c.sequence_length, self.c.hidden_units, self.backbone
        items = torch.tensor([([0] * T + h)[-T:] for h in histories])  # [B, T]
        real = (items > 0).unsqueeze(-1)
        x = (table[items] * math.sqrt(D) + b["position_embedding.weight"][1:]) * real
        x = x.transpose(0, 1)  # [T, B, D]
        causal = torch.full((T, T), -math.inf).triu(1)
        for k in range(self.c.blocks):
            p = {n.removeprefix(f"blocks.{k}."): v for n, v in b.items()}
            query = F.layer_norm(x, (D,), p["query_norm.weight"], p["query_norm.bias"], 1e-8)
            attended, _ = F.multi_head_attention_forward(
                query, x, x, D, self.c.heads,
                torch.cat([p["query.weight"], p["key_value.weight"]]),
                torch.cat([p["query.bias"], torch.zeros(D), p["value_bias"]]),
                None, None, False, 0.0, p["attended.weight"], p["attended.bias"],
                attn_mask=causal,
            )  # fmt: skip
            x = query + attended
            x = F.layer_norm(x, (D,), p["forward_norm.weight"], p["forward_norm.bias"], 1e-8)
            inner = F.relu(F.linear(x, p["inner.weight"], p["inner.bias"]))
            x = x + F.linear(inner, p["outer.weight"], p["outer.bias"])
        return F.layer_norm(x, (D,), b["norm.weight"], b["norm.bias"], 1e-8).transpose(0, 1)

    def _states(self, part: str) -> np.ndarray:
        """Last outputs of all users under the global module, [U, D]."""
        with torch.no_grad():
            known = [self.shop.known(u, part) for u in range(self._users)]
            return self._outputs(self._table(self._content(0), 0, 0), known)[:, -1].numpy()

    def _new_optimizers(self) -> None:
        c = self.c

        def adamw(scaled: list[tuple[float, list[Tensor]]]) -> torch.optim.AdamW:
            groups = [{"params": ps, "lr": c.learning_rate * scale} for scale, ps in scaled if ps]
            return torch.optim.AdamW(groups, weight_decay=c.weight_decay, foreach=False)

        ids = "item_embedding.weight"
        rest = [p for name, p in self.backbone.items() if name != ids]
        self.optimizers: dict[int | str, torch.optim.AdamW] = {
            "backbone": adamw([(c.id_lr_scale, [self.backbone[ids]]), (1.0, rest)])
        }
        for group, module in self.modules.items():
            peft = [p for name, p in module.items() if name.startswith("encoder.")]
            projector = [p for name, p in module.items() if not name.startswith("encoder.")]
            if module:
                self.optimizers[group] = adamw([(c.peft_lr_scale, peft), (1.0, projector)])

    def _named(self) -> Weights:
        named = {f"backbone.{k}": v for k, v in self.backbone.items()}
        for group, module in self.modules.items():
            named |= {f"modules.{group}.{k}": v for k, v in module.items()}
        return named


def ndcg_at_20(ranks: list[int]) -> float:
    """Mean over users of 1 / log2(rank + 2) within the first 20."""
    return sum(1 / math.log2(r + 2) for r in ranks if r < 20) / len(ranks)


def _leaves(weights: Weights, prefix: str) -> Weights:
    own = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    return {k: v.clone().requires_grad_() for k, v in own.items()}


def _copies(weights: Weights) -> Weights:
    return {name: tensor.detach().clone() for name, tensor in weights.items()}
