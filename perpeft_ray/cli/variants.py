"""`perpeft variants`: the PEFT variants, and a module's size on an encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from perpeft_ray.config import FACTS, Variant
from perpeft_ray.config.rules import at_least
from perpeft_ray.errors import InputError
from perpeft_ray.screen import console as console_on

if TYPE_CHECKING:
    from perpeft_ray.report.text import TextTable


@dataclass(frozen=True)
class Variants:
    """`perpeft variants`."""

    encoder: str = "toyshop-clip"
    """As in `perpeft study`; a local folder needs only its config.json."""
    rank: int = 4
    """Rank; its meaning depends on the variant."""
    bottleneck: int = 32
    """Width of IISAN's bottleneck blocks."""
    last_layers: int | None = None
    """Adapt only this many last layers of each tower; None: all."""

    def run(self) -> None:
        """Print the table, and what each variant is."""
        for name in ("rank", "bottleneck", "last_layers"):
            if (value := getattr(self, name)) is not None:
                at_least(name, value, 1)
        console = console_on(highlight=False)
        table, limits = _table(self)
        console.print(table.terminal())
        for variant, facts in FACTS.items():
            console.print(f"{variant}: {facts.summary}", soft_wrap=True)
            if facts.rank:
                console.print(f"    rank: {facts.rank}", soft_wrap=True)
            for limit in (facts.limits, limits.get(variant)):
                if limit:
                    console.print(f"    limits: {limit}", soft_wrap=True)


def _table(command: Variants) -> tuple[TextTable, dict[Variant, str]]:
    """The table, and why variants do not fit the encoder."""
    from perpeft_ray.encoder.sizes import encoder_parameters, module_parameters
    from perpeft_ray.report.text import MISSING, TextTable

    encoder = command.encoder
    whole = encoder_parameters(encoder)
    rows, limits = [], {}
    for variant, facts in FACTS.items():
        size = share = MISSING
        try:
            parameters = module_parameters(
                encoder,
                variant,
                rank=command.rank,
                bottleneck=command.bottleneck,
                last_layers=command.last_layers,
            )
            size, share = f"{parameters:,}", f"{100 * parameters / whole:.3f}"
        except InputError as error:
            limits[variant] = str(error)
        applies = (facts.rank is not None, facts.dropout, facts.in_towers, facts.in_towers)
        rows.append([variant, size, share, *("yes" if yes else MISSING for yes in applies)])
    header = ("variant", "a module", "%", "rank", "dropout", "last layers", "gradient in towers")
    table = TextTable(
        f"PEFT variants on {encoder} ({whole:,} parameters)",
        dict(zip(header, zip(*rows, strict=True), strict=True)),
        f"A group has one module. Rank {command.rank}, bottleneck {command.bottleneck}.",
    )
    return table, limits
