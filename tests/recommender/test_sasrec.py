"""SASRec against a case worked by hand and against torch's own attention and convolutions."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perpeft_ray.recommender.sasrec import SASRec

EPS = 1e-8


@pytest.mark.parametrize("heads", [1, 4])
def test_equals_torch_attention_and_convolutions(heads):
    torch.manual_seed(heads)
    model = SASRec(num_items=40, hidden_units=16, length=7, blocks=2, heads=heads, dropout=0.3)
    model.eval()
    randomise_norms_and_biases(model)
    reference = Reference(model, heads).eval()
    items, padding = left_padded(torch.tensor([7, 4, 1, 0]), length=7, num_items=40)

    outputs = model(model.item_embedding(items), padding)
    expected = reference(items)
    torch.testing.assert_close(outputs, expected)

    direction = torch.randn_like(outputs)
    outputs.mul(direction).sum().backward()
    expected.mul(direction).sum().backward()
    torch.testing.assert_close(model.item_embedding.weight.grad, reference.items.weight.grad)
    torch.testing.assert_close(
        model.position_embedding.weight.grad, reference.positions.weight.grad
    )
    grad = reference.attention[0].in_proj_weight.grad
    assert grad is not None
    torch.testing.assert_close(model.blocks[0].query.weight.grad, grad[:16])
    torch.testing.assert_close(model.blocks[0].key_value.weight.grad, grad[16:])


def test_equals_the_reference_also_with_dropout_in_the_mean():
    """The dropouts are in the same places: both models' means over many draws agree."""
    torch.manual_seed(0)
    model = SASRec(num_items=9, hidden_units=8, length=3, blocks=1, heads=2, dropout=0.4).train()
    reference = Reference(model, heads=2, dropout=0.4).train()
    items = torch.tensor([[0, 3, 5]]).expand(20_000, 3)
    with torch.no_grad():
        ours = model(model.item_embedding(items), items == 0)
        theirs = reference(items)
    # The standard error of each mean is below 1 / sqrt(20000) = 0.007 (outputs are normalised).
    torch.testing.assert_close(ours.mean(0), theirs.mean(0), rtol=0, atol=0.04)
    torch.testing.assert_close(ours.std(0), theirs.std(0), rtol=0, atol=0.04)
    assert ours.std(0).min() > 0.05


def test_whatever_stands_at_padding_changes_nothing():
    model = small_model()
    items, padding = left_padded(torch.tensor([5, 2, 0]), length=5, num_items=20)
    embedded = model.item_embedding(items).detach()
    other = embedded.masked_fill(padding.unsqueeze(-1), 1e6)
    torch.testing.assert_close(model(embedded, padding), model(other, padding), rtol=0, atol=0)


def test_a_later_item_changes_no_earlier_output():
    model = small_model()
    embedded = torch.randn(3, 5, 8)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    before = model(embedded, padding)
    for t in range(5):
        changed = embedded.clone()
        changed[:, t] += 1.0
        after = model(changed, padding)
        torch.testing.assert_close(after[:, :t], before[:, :t], rtol=0, atol=1e-6)
        assert (after[:, t:] - before[:, t:]).abs().amax(dim=-1).min() > 1e-4


def test_users_of_a_batch_do_not_mix():
    model = small_model()
    items, padding = left_padded(torch.tensor([5, 3, 1]), length=5, num_items=20)
    embedded = model.item_embedding(items)
    together = model(embedded, padding)
    for user in range(3):
        alone = model(embedded[user : user + 1], padding[user : user + 1])
        torch.testing.assert_close(alone[0], together[user])


@pytest.mark.parametrize("training", [False, True])
def test_a_row_of_padding_alone_is_finite_and_so_are_its_gradients(training):
    model = small_model().train(training)
    embedded = torch.zeros(2, 5, 8, requires_grad=True)
    padding = torch.tensor([[True] * 5, [True, True, False, False, False]])
    outputs = model(embedded, padding)
    outputs.square().sum().backward()
    assert outputs.isfinite().all()
    for name, parameter in model.named_parameters():
        if name != "item_embedding.weight":
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    assert embedded.grad is not None
    assert embedded.grad[padding].abs().max() == 0.0


def test_padding_rows_are_zero_and_stay_so():
    model = small_model().train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    items, padding = left_padded(torch.tensor([5, 2]), length=5, num_items=20)
    for _ in range(3):
        optimiser.zero_grad()
        model(model.item_embedding(items), padding).square().mul(torch.arange(8)).sum().backward()
        for embedding in (model.item_embedding, model.position_embedding):
            assert embedding.weight.grad is not None
            assert embedding.weight.grad[0].abs().max() == 0.0
        optimiser.step()
    assert model.item_embedding.weight[0].abs().max() == 0.0
    assert model.position_embedding.weight[0].abs().max() == 0.0


def test_matrices_start_xavier_normal():
    torch.manual_seed(0)
    D, I = 64, 1000  # noqa: E741
    model = SASRec(num_items=I, hidden_units=D, length=100, blocks=1, heads=4, dropout=0.0)
    block = model.blocks[0]
    for weight, fans in (
        (model.item_embedding.weight[1:], I + 1 + D),
        (model.position_embedding.weight[1:], 101 + D),
        (block.query.weight, 4 * D),  # drawn as a part of one [3D, D] matrix
        (block.key_value.weight, 4 * D),
        (block.attended.weight, 2 * D),
        (block.inner.weight, 2 * D),
        (block.outer.weight, 2 * D),
    ):
        assert weight.std().item() == pytest.approx(math.sqrt(2.0 / fans), rel=0.05)
    for bias in (block.query.bias, block.value_bias, block.attended.bias):
        assert bias.abs().max() == 0.0


def test_names_in_a_checkpoint():
    """These names are on disk: a change of one breaks the reading of old checkpoints."""
    block = [
        f"blocks.0.{name}"
        for name in (
            "value_bias",
            "query_norm.weight", "query_norm.bias",
            "query.weight", "query.bias",
            "key_value.weight",
            "attended.weight", "attended.bias",
            "forward_norm.weight", "forward_norm.bias",
            "inner.weight", "inner.bias",
            "outer.weight", "outer.bias",
        )
    ]  # fmt: skip
    model = SASRec(num_items=3, hidden_units=4, length=2, blocks=1, heads=2, dropout=0.0)
    assert list(model.state_dict()) == [
        "item_embedding.weight",
        "position_embedding.weight",
        *block,
        "norm.weight",
        "norm.bias",
    ]


class Reference(nn.Module):
    """SASRec written plainly, from the paper's description, with a given model's weights."""

    def __init__(self, model: SASRec, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        size, D = model.item_embedding.weight.shape
        blocks = len(model.blocks)
        self.items = nn.Embedding(size, D, padding_idx=0)
        self.positions = nn.Embedding(len(model.position_embedding.weight), D, padding_idx=0)
        self.dropout = nn.Dropout(dropout)
        self.attention_norms = nn.ModuleList(nn.LayerNorm(D, EPS) for _ in range(blocks))
        self.attention = nn.ModuleList(
            nn.MultiheadAttention(D, heads, dropout, batch_first=True) for _ in range(blocks)
        )
        self.forward_norms = nn.ModuleList(nn.LayerNorm(D, EPS) for _ in range(blocks))
        self.first = nn.ModuleList(nn.Conv1d(D, D, kernel_size=1) for _ in range(blocks))
        self.second = nn.ModuleList(nn.Conv1d(D, D, kernel_size=1) for _ in range(blocks))
        self.norm = nn.LayerNorm(D, EPS)
        self.items.load_state_dict(model.item_embedding.state_dict())
        self.positions.load_state_dict(model.position_embedding.state_dict())
        self.norm.load_state_dict(model.norm.state_dict())
        for i, block in enumerate(model.blocks):
            self.attention_norms[i].load_state_dict(block.query_norm.state_dict())
            self.forward_norms[i].load_state_dict(block.forward_norm.state_dict())
            self.attention[i].load_state_dict(
                {
                    "in_proj_weight": torch.cat([block.query.weight, block.key_value.weight]),
                    "in_proj_bias": torch.cat(
                        [block.query.bias, torch.zeros_like(block.value_bias), block.value_bias]
                    ),
                    "out_proj.weight": block.attended.weight,
                    "out_proj.bias": block.attended.bias,
                }
            )
            for convolution, linear in (
                (self.first[i], block.inner),
                (self.second[i], block.outer),
            ):
                convolution.load_state_dict(
                    {"weight": linear.weight[:, :, None], "bias": linear.bias}
                )

    def forward(self, items: Tensor) -> Tensor:
        T = items.shape[1]
        real = items != 0
        positions = torch.arange(1, T + 1) * real
        x = self.items(items) * math.sqrt(self.items.embedding_dim) + self.positions(positions)
        x = self.dropout(x)
        future = ~torch.tril(torch.ones(T, T, dtype=torch.bool))
        for i in range(len(self.attention)):
            query = self.attention_norms[i](x)
            attended, _ = self.attention[i](query, x, x, attn_mask=future)
            x = self.forward_norms[i](query + attended)
            inner = F.relu(self.dropout(self.first[i](x.transpose(1, 2))))
            x = x + self.dropout(self.second[i](inner)).transpose(1, 2)
        return self.norm(x)


def small_model() -> SASRec:
    torch.manual_seed(1)
    model = SASRec(num_items=20, hidden_units=8, length=5, blocks=2, heads=2, dropout=0.3)
    randomise_norms_and_biases(model)
    return model.eval()


def randomise_norms_and_biases(model: SASRec) -> None:
    """So that a norm or bias that is left out, or taken twice, is seen."""
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter.detach(), mean=float(name.endswith("norm.weight")), std=0.3)


def left_padded(lengths: Tensor, length: int, num_items: int) -> tuple[Tensor, Tensor]:
    """Random items [B, length] of which the last `lengths` are real, and the padding mask."""
    padding = torch.arange(length) < (length - lengths)[:, None]
    items = torch.randint(1, num_items + 1, padding.shape).masked_fill(padding, 0)
    return items, padding
