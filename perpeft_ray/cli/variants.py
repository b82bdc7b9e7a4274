"""`perpeft variants`: what there is to choose from, and how large it is on an encoder."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro
from rich.console import Console

from perpeft_ray.cli.parsing import parse
from perpeft_ray.config import FACTS, Variant
from perpeft_ray.encoder.sizes import ModuleSettings, encoder_parameters, module_parameters
from perpeft_ray.errors import InputError
from perpeft_ray.results.text import MISSING, Cell, TextTable


def variants(arguments: Sequence[str]) -> None:
    """`perpeft variants [--encoder NAME]`."""
    command = parse(_Variants, arguments, "perpeft variants")
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    table, limits = _table(command.encoder, command.module)
    console.print(table.terminal())
    for variant, facts in FACTS.items():
        console.print(f"{variant}: {facts.summary}", soft_wrap=True)
        if facts.rank:
            console.print(f"    rank: {facts.rank}", soft_wrap=True)
        for limit in (facts.limits, limits.get(variant)):
            if limit:
                console.print(f"    limits: {limit}", soft_wrap=True)


@dataclass(frozen=True)
class _Variants:
    """List the PEFT variants with the size of a group's module on an encoder."""

    encoder: str = "toyshop-clip"
    """As in `perpeft study`; a local folder needs no more than its config.json."""
    module: Annotated[ModuleSettings, tyro.conf.arg(name="")] = field(
        default_factory=ModuleSettings
    )


def _table(encoder: str, settings: ModuleSettings) -> tuple[TextTable, dict[Variant, str]]:
    """The table, and for variants that do not fit the encoder, why."""
    whole = encoder_parameters(encoder)
    rows, limits = [], {}
    for variant, facts in FACTS.items():
        size = share = MISSING
        try:
            parameters = module_parameters(encoder, variant, settings)
            size, share = f"{parameters:,}", f"{100 * parameters / whole:.3f}"
        except InputError as error:
            limits[variant] = str(error)
        applies = (facts.rank is not None, facts.dropout, facts.in_towers, facts.in_towers)
        words = ["yes" if it_does else MISSING for it_does in applies]
        rows.append(tuple(Cell(text) for text in (variant, size, share, *words)))
    table = TextTable(
        title=f"PEFT variants on {encoder} ({whole:,} parameters)",
        header=("variant", "a module", "%", "rank", "dropout", "last layers", "gradient in towers"),
        rows=tuple(rows),
        caption=f"A group has one module. Rank {settings.rank}, bottleneck {settings.bottleneck}.",
    )
    return table, limits
