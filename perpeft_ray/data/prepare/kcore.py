"""The k-core: the most interactions in which every user and every item has at least k."""

from __future__ import annotations

from perpeft_ray.data.prepare.database import Database


def make_core(database: Database, name: str, source: str, k: int) -> int:
    """Make the table `name`, the k-core of the table `source`; its rows, possibly 0.

    `source` has `user_row` and `item_row`, which are numbers: there are many turns. Users and items
    with fewer than k rows go in turns until all have k; the order of the turns does not change the
    core.
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
