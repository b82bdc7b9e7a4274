"""Which orderings of the paper hold on the data at hand? One table from finished studies.

    python studies/findings.py results/findings_toyshop results/findings_movielens_small

Trains nothing. Writes `means`, `orderings` and `settings` as Parquet and Markdown to
results/reference (`--out`). The commands of the studies behind the committed tables are in
results/findings/paper_order.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from perpeft_ray.cli import parse, run


@dataclass(frozen=True)
class Findings:
    """Options."""

    studies: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of finished studies on any data sets."""
    out: Path = Path("results/reference")
    """Folder for the tables."""


def main() -> None:
    """Write the tables and print them."""
    from perpeft_ray.report.orderings import means, orderings, settings
    from perpeft_ray.report.tables import write_table

    findings = parse(Findings, description=__doc__)
    for make in (means, orderings, settings):
        table = make(findings.studies)
        write_table(table, findings.out, ("parquet", "md"))
        for text in table.printed:
            print(text.markdown())


if __name__ == "__main__":
    run(main)
