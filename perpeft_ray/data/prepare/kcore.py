"""The k-core: the largest set of interactions with at least k per user and per item."""

from __future__ import annotations

from perpeft_ray.data.prepare.database import Database


def make_core(database: Database, name: str, source: str, k: int) -> int:
    """Make the table `name`, the k-core of the table `source`; its rows, possibly 0.

    `source` has the columns `user_row` and `item_row`; they are numbers, for speed. Removes users
    and items with fewer than k rows in turns until all have k; the order does not change the core.
    """
    if not database.has(name):
        left, before = database.replace("turn", f"SELECT * FROM {source}"), -1
        while left != before:
            before = left
            for column in ("item_row", "user_row"):
                left = database.replace(
                    "turn",
                    f"SELECT * FROM turn WHERE {column} IN "
                    f"(SELECT {column} FROM turn GROUP BY {column} HAVING count(*) >= {k:d})",
                )
    return database.table(name, "SELECT * FROM turn")
