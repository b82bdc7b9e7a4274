"""The recommender: one shared SASRec, and item embeddings that depend on a group's module.

`e_i = id_embedding_i + w * projector_g(encoder_g(item i))`, METHOD.md section 3. The towers
and everything frozen exist once; a *module* is a dictionary of one group's own trainable tensors
(PEFT module and projector), swapped in for a call. Only the module in use gets gradients.
Letters: I items (0 is padding), n items asked for, D hidden units, B users, T positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from perpeft_ray.encoder import fast
from perpeft_ray.encoder.fast.graphs import TrainingGraphs
from perpeft_ray.encoder.hardware import sizes_of
from perpeft_ray.encoder.items import Inputs, ItemEncoder
from perpeft_ray.encoder.rows import sent
from perpeft_ray.recommender.losses import sequence_loss_sum
from perpeft_ray.recommender.projector import Projector
from perpeft_ray.recommender.sampling import TrainingBatch
from perpeft_ray.recommender.sasrec import SASRec

GroupParameters = Mapping[str, nn.Parameter]
"""One group's trainable tensors by name: `encoder.*` is the PEFT module, `projector.*` the rest."""

_TOWER = ("encoder.", "projector.")


class ItemTower(nn.Module):
    """Item encoder and projector: the multimodal half of an item's embedding, [n, D]."""

    def __init__(self, encoder: ItemEncoder, projector: Projector) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector
        self._graphs = TrainingGraphs(
            lambda module, inputs: functional_call(self, dict(module), inputs)
        )

    def inputs(self, items: NDArray[np.int64]) -> Inputs:
        """Arguments of `forward` for item indices int64 [n], each 1..I; see `ItemEncoder`."""
        return self.encoder.inputs(items)

    def forward(self, *inputs: Tensor | None) -> Tensor:
        """-> [n, D]."""
        return self.projector(self.encoder(*inputs))  # type: ignore[no-any-return]  # nn.Module's call is untyped

    def content(self, items: NDArray[np.int64], module: Mapping[str, Tensor]) -> Tensor:
        """`forward` of items int64 [n] under a module's tensors, [n, D]."""
        inputs = self.inputs(items)
        few = len(items) <= sizes_of(next(self.projector.parameters()).device).graph_items
        if few and fast.enabled() and self.training and torch.is_grad_enabled() and module:
            return self._graphs(module, inputs, len(items))
        return functional_call(self, dict(module), inputs)[: len(items)]  # type: ignore[no-any-return]  # torch says Any

    def contents(
        self, items: NDArray[np.int64], modules: Iterable[Mapping[str, Tensor]]
    ) -> Iterator[Tensor]:
        """`content` under each module; what modules do not change is computed once."""
        inputs = self.encoder.shared(self.inputs(items))
        for module in modules:
            yield functional_call(self, dict(module), inputs)[: len(items)]


class Recommender(nn.Module):
    """SASRec over items embedded with a group's module.

    `tower` None is the method without multimodal content: `weight` does not apply, and every
    module is empty.
    """

    def __init__(self, backbone: SASRec, tower: ItemTower | None, weight: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.tower = tower
        self.weight = weight

    def new_module(self) -> dict[str, nn.Parameter]:
        """A copy of the tower's trainable tensors: the start of a group's module."""
        if self.tower is None:
            return {}
        return {
            name: nn.Parameter(parameter.detach().clone())
            for name, parameter in self.tower.named_parameters()
            if parameter.requires_grad
        }

    def embed(self, items: NDArray[np.int64], module: GroupParameters) -> Tensor:
        """`e_i` of ascending distinct item indices [n], [n, D]; index 0 gives zeros."""
        ids, content = self.parts(items, module)
        return ids + self.weight * content

    def parts(self, items: NDArray[np.int64], module: GroupParameters) -> tuple[Tensor, Tensor]:
        """The summands of `embed`: id embeddings and projected content, [n, D] each."""
        padded = int(len(items) > 0 and items[0] == 0)
        content = self.content(items[padded:], module)
        return self.ids(items), F.pad(content, (0, 0, padded, 0))

    def ids(self, items: NDArray[np.int64]) -> Tensor:
        """Id embeddings of item indices [n], [n, D]."""
        table = self.backbone.item_embedding.weight
        return F.embedding(sent(items, table.device), table, padding_idx=0)

    def content(self, items: NDArray[np.int64], module: GroupParameters) -> Tensor:
        """Projected content of item indices [n], each 1..I, [n, D]; zeros without a tower."""
        if self.tower is None:
            table = self.backbone.item_embedding.weight
            return table.new_zeros(len(items), table.shape[1])
        return self.tower.content(items, _own(module))

    def contents(
        self, items: NDArray[np.int64], modules: Sequence[GroupParameters]
    ) -> Iterator[Tensor]:
        """`content` under each of these modules."""
        if self.tower is None:
            return (self.content(items, module) for module in modules)
        return self.tower.contents(items, map(_own, modules))

    def look_up(
        self,
        items: NDArray[np.int64],
        where: NDArray[np.int64],
        users: NDArray[np.int64],
        content: Tensor,
        module: GroupParameters,
    ) -> Tensor:
        """`e_i` at every position [..., B, T] of users [B].

        `where` are positions in `items` [n]; `content` [n, D] is the items' projected content.
        """
        embedded = self.ids(items) + self.weight * content
        return F.embedding(sent(where, embedded.device), embedded)

    def loss_sum(
        self,
        batch: TrainingBatch,
        module: GroupParameters,
        conditioning_weight: float,
        content: Tensor | None = None,
    ) -> tuple[Tensor, int]:
        """Conditioning loss summed over the batch's positions, and their number.

        `content` [n, D] is the projected content of the batch's distinct items, zero for padding;
        None: encode them here, in one forward of the tower.
        """
        items, where = batch.distinct()
        if content is None:
            content = self.parts(items, module)[1]
        embedded = self.look_up(items, where, batch.users, content, module)  # [3 or 4, B, T, D]
        inputs, positives, *negatives = embedded.unbind(0)  # [B, T, D] each
        weights = [1.0]
        if len(negatives) == 2:
            weights = [conditioning_weight, 1.0 - conditioning_weight]
        mask = sent(batch.inputs != 0, embedded.device)
        outputs = self.backbone(inputs, ~mask)
        loss = sequence_loss_sum(
            outputs, positives, list(zip(weights, negatives, strict=True)), mask
        )
        return loss, int(np.count_nonzero(batch.inputs))

    @torch.no_grad()
    def embed_all(self, module: GroupParameters) -> Tensor:
        """`e_i` of all items under a module, float32 [I+1, D]; row 0, the padding, is zero."""
        content = torch.zeros_like(self.backbone.item_embedding.weight)
        for chunk in self.chunks():
            content[torch.from_numpy(chunk)] = self.content(chunk, module)
        return self.table(content)

    def table(self, content: Tensor) -> Tensor:
        """The item side of scores, from projected content: `queries` are multiplied with it.

        content [I+1, D], row 0 zero -> `e_i`, [I+1, D].
        """
        return self.backbone.item_embedding.weight.detach() + self.weight * content

    def chunks(self) -> list[NDArray[np.int64]]:
        """All items except padding, in even chunks to encode at a time."""
        items = np.arange(1, self.backbone.item_embedding.num_embeddings)
        size = sizes_of(self.backbone.item_embedding.weight.device).encode_items
        if self.tower is not None:
            items = self.tower.encoder.order(items)
        return np.array_split(items, -(-len(items) // size))

    @torch.no_grad()
    def states(self, inputs: NDArray[np.int64], item_embeddings: Tensor) -> Tensor:
        """Last outputs of users whose latest items are `inputs` [B, T] (0 at padding): [B, D]."""
        return self.last_outputs(inputs, lambda _, items: F.embedding(items, item_embeddings))

    def last_outputs(
        self, inputs: NDArray[np.int64], embed: Callable[[slice, Tensor], Tensor]
    ) -> Tensor:
        """SASRec's last outputs for `inputs` [B, T], as `states`, computed in blocks of users.

        `embed` takes a block's rows and their items [b, T] and returns their embeddings.
        """
        device = self.backbone.item_embedding.weight.device
        out = []
        size = sizes_of(device).states_users
        for at in range(0, len(inputs), size):
            rows = slice(at, at + size)
            items = sent(inputs[rows], device)
            out.append(self.backbone(embed(rows, items), items == 0)[:, -1])
        return torch.cat(out)

    def queries(
        self,
        owners: NDArray[np.integer],
        inputs: NDArray[np.int64],
        item_embeddings: Tensor,
        module: GroupParameters,
    ) -> Tensor:
        """The user side of scores: its products with the rows of `embed_all` score all items.

        `owners` [B]: the owner of each user's vector, for `VectorRecommender`.
        """
        return self.states(inputs, item_embeddings)


def _own(module: GroupParameters) -> dict[str, Tensor]:
    return {name: p for name, p in module.items() if name.startswith(_TOWER)}
