"""The k-core: the most interactions in which every user and every item has at least k."""

from __future__ import annotations

from perpeft_ray.data.prepare.database import Database


def make_core(database: Database, name: str, source: str, k: int) -> int:
    """Make the table `name`, the k-core of the table `source`; its rows, possibly 0.

    `source` has `user_id`, `item_id` and a unique `line`. Users and items with fewer than k rows go
    in turns until all have k; the order of the turns does not change the core. The turns are on
    numbers instead of ids, as there are many and ids are long.
    """
    left = database.replace(
        "pairs",
        f"SELECT line, user_number, item_number FROM {source} "
        f"JOIN ({_numbered('user', source)}) USING (user_id) "
        f"JOIN ({_numbered('item', source)}) USING (item_id)",
    )
    before = -1
    while left != before:
        before = left
        for column in ("item_number", "user_number"):
            left = database.replace(
                "pairs",
                f"SELECT * FROM pairs WHERE {column} IN "
                f"(SELECT {column} FROM pairs GROUP BY {column} HAVING count(*) >= {k:d})",
            )
    return database.table(name, f"SELECT * FROM {source} WHERE line IN (SELECT line FROM pairs)")


def _numbered(what: str, source: str) -> str:
    return (
        f"SELECT {what}_id, CAST(row_number() OVER () AS INTEGER) AS {what}_number "
        f"FROM (SELECT DISTINCT {what}_id FROM {source})"
    )
