"""CUDA graphs of an encoder's training pass, one per shape that repeats.

A step with few users launches about two thousand small kernels, and launching takes longer than
computing. A graph launches them at once. Shapes repeat because items and titles are padded.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, cast

import torch
from torch import Tensor

MOST_GRAPHS = 32
_SEEN = 2
"""How often a shape is computed before its graph is captured."""


class TrainingGraphs:
    """Calls `function(module, inputs)`; from a shape's third call on through a CUDA graph.

    `inputs` are tensors in tuples, lists and dataclasses; other values count as part of the shape.
    All graphs share their memory: while one result still needs its gradient, other calls run
    without a graph.
    """

    def __init__(self, function: Callable[[Mapping[str, Tensor], Any], Tensor]) -> None:
        self._function = function
        self._seen: Counter[Any] = Counter()
        self._graphs: dict[Any, Callable[..., Tensor]] = {}
        self._pool: Any = None
        self._pending: weakref.ref[Tensor] | None = None

    def __call__(self, module: Mapping[str, Tensor], inputs: Any, rows: int) -> Tensor:
        """The first `rows` of the function's result, on the GPU of `inputs`."""
        key = (tuple(module), _shape(inputs))
        graph = self._graphs.get(key)
        waiting = self._pending is not None and self._pending() is not None
        if graph is None and not waiting and len(self._graphs) < MOST_GRAPHS:
            self._seen[key] += 1
            if self._seen[key] > _SEEN:
                graph = self._graphs[key] = self._captured(module, inputs)
        if graph is None or waiting:
            return self._function(module, inputs)[:rows]
        found = graph(*module.values(), *_tensors(inputs))[:rows]
        self._pending = weakref.ref(found)
        found.register_hook(self._backward_begins)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return found

    def _backward_begins(self, _: Tensor) -> None:
        self._pending = None

    def _captured(self, module: Mapping[str, Tensor], inputs: Any) -> Callable[..., Tensor]:
        names, function = list(module), self._function

        def of_tensors(*tensors: Tensor) -> Tensor:
            own = dict(zip(names, tensors, strict=False))
            return function(own, _filled(inputs, iter(tensors[len(names) :])))

        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        parameters = [x.detach().clone().requires_grad_() for x in module.values()]
        sample = (*parameters, *(x.clone() for x in _tensors(inputs)))
        # Capturing draws random numbers; keep them from changing this step's dropout.
        with torch.random.fork_rng(devices=[sample[0].device]):
            graph = torch.cuda.make_graphed_callables(
                of_tensors, sample, allow_unused_input=True, pool=self._pool
            )
        return cast("Callable[..., Tensor]", graph)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))


def _filled(value: Any, tensors: Iterator[Tensor]) -> Any:
    """`value` with its tensors replaced."""
    if isinstance(value, Tensor):
        return next(tensors)
    if isinstance(value, tuple | list):
        return type(value)(_filled(part, tensors) for part in value)
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(*(_filled(getattr(value, f.name), tensors) for f in fields(value)))
    return value


def _shape(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, tuple | list):
        return tuple(map(_shape, value))
    if is_dataclass(value):
        return tuple(_shape(getattr(value, field.name)) for field in fields(value))
    return value
