"""The k-core: the most interactions in which every user and every item has at least k."""

from __future__ import annotations

from perpeft_ray.data.prepare.database import Database


def shrink_to_core(database: Database, table: str, k: int) -> int:
    """Shrink a table with `user_id` and `item_id` to its k-core; the rows left, possibly 0.

    Users and items with fewer than k rows go in turns until all have k. The core does not depend
    on the order of the turns, so a stopped shrinking may go on where it was.
    """
    left = database.count(table)
    while True:
        before = left
        for column in ("item_id", "user_id"):
            few = database.row(
                f"SELECT count(*) FROM "
                f"(SELECT {column} FROM {table} GROUP BY {column} HAVING count(*) < {k:d})"
            )[0]
            if few:
                left = database.replace(
                    table,
                    f"SELECT * FROM {table} WHERE {column} IN "
                    f"(SELECT {column} FROM {table} GROUP BY {column} HAVING count(*) >= {k:d})",
                )
        if left == before:
            return left
