"""Where adapters go in a model: its transformer layers and their parts, found by rules.

There is no table of model families. A layer is an element of a module list whose elements all have
an attention; an attention is a module whose linear layers are named as query, key and value.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from perpeft_ray.errors import InputError

_QUERY = frozenset({"q_proj", "query", "query_proj", "q_lin", "to_q", "q"})
_KEY = frozenset({"k_proj", "key", "key_proj", "k_lin", "to_k", "k"})
_VALUE = frozenset({"v_proj", "value", "value_proj", "v_lin", "to_v", "v"})


@dataclass(frozen=True)
class Targets:
    """Full names of the modules that variants adapt, within the adapted layers."""

    query: list[str]
    key: list[str]
    value: list[str]
    feed_forward: list[str]
    """First (widening) linear layers of the feed-forward networks."""
    biased: list[str]
    """All linear layers with a bias."""
    norms: list[str]
    """LayerNorms; also those outside the layers if all layers are adapted."""


def find_targets(model: nn.Module, last_layers: int | None = None) -> Targets:
    """The targets in the last layers of every tower (None: all layers).

    A tower with fewer layers than `last_layers` is adapted whole. Raises InputError if the model
    has no layers by these rules, or every tower has fewer.
    """
    stacks = layer_stacks(model)
    if not stacks:
        raise InputError(
            "`encoder` must have transformer layers with linear layers named as query, key and "
            f"value to be adapted, but {type(model).__name__} has none"
        )
    deepest = max(len(stack) for stack in stacks.values())
    if last_layers is not None and last_layers > deepest:
        raise InputError(
            "`peft.last_layers` must be between 1 and the number of layers of the encoder's "
            f"deepest tower ({deepest}), but is {last_layers}"
        )
    targets = Targets([], [], [], [], [], [])
    for name, stack in stacks.items():
        first = 0 if last_layers is None else max(len(stack) - last_layers, 0)
        for number in range(first, len(stack)):
            _add_layer(targets, f"{name}.{number}", stack[number])
    if last_layers is None:
        targets.norms[:] = [name for name, module in model.named_modules() if _is_norm(module)]
    return targets


def layer_stacks(model: nn.Module) -> dict[str, nn.ModuleList]:
    """The stacks of transformer layers, one per tower, by name; none for convolutional towers.

    Of nested lists of layers only the outermost counts.
    """
    stacks: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in stacks)
        if (
            not inside
            and isinstance(module, nn.ModuleList)
            and len(module) > 0
            and all(any(_attentions(layer)) for layer in module)
        ):
            stacks[name] = module
    return stacks


def _add_layer(targets: Targets, prefix: str, layer: nn.Module) -> None:
    attended: set[str] = set()
    for name, (query, key, value) in _attentions(layer):
        attended.add(name)
        inner = f"{prefix}.{name}" if name else prefix
        targets.query.append(f"{inner}.{query}")
        targets.key.append(f"{inner}.{key}")
        targets.value.append(f"{inner}.{value}")
    for name, module in layer.named_modules():
        if isinstance(module, nn.Linear):
            if module.bias is not None:
                targets.biased.append(f"{prefix}.{name}")
            in_attention = name.rpartition(".")[0] in attended
            if module.out_features > module.in_features and not in_attention:
                targets.feed_forward.append(f"{prefix}.{name}")
        elif _is_norm(module):
            targets.norms.append(f"{prefix}.{name}")


def _attentions(layer: nn.Module) -> Iterator[tuple[str, tuple[str, str, str]]]:
    """Names of a layer's attentions and of their query, key and value layers."""
    for name, module in layer.named_modules():
        linear = {child for child, m in module.named_children() if isinstance(m, nn.Linear)}
        found = [sorted(linear & names) for names in (_QUERY, _KEY, _VALUE)]
        if all(len(names) == 1 for names in found):
            (query,), (key,), (value,) = found
            yield name, (query, key, value)


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("RMSNorm")
