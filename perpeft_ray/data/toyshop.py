"""The toyshop: an embedded catalogue in which user groups attend to different aspects of an item.

Generated from a seed in seconds, without downloads; one seed gives identical tables and pixels.

Items are drawn as `toyshop_items` says (aspects, which of them the image shows and the title
names). Users attend to three things, in this order of weight:

- the aspect of their group (`OWN`): one value of it, drawn for each user;
- the home department of their group (`HOME`), by which histories reveal the groups;
- `pattern`, which everybody attends to (`COMMON`): one value of it, drawn for each user.

| group | home department | own aspect |
|-------|-----------------|------------|
| 0     | kitchen         | border     |
| 1     | garden          | brand      |
| 2     | office          | material   |
| 3     | sports          | style      |
| 4     | nursery         | colour     |
| 5     | travel          | kind       |

Time runs from 0 to 1, a year. Items are released uniformly from `EARLIEST` to 1. A user has
`SHORTEST` to `LONGEST` interactions at uniform times of the year. Each takes one of the released
items that the user does not have yet, drawn from the softmax of

    HOME · [it is of the home department] + OWN · [it has the preferred value of the own aspect]
    + COMMON · [it has the preferred pattern] + NEW · [it was released at most `NEWNESS` ago]
    + popularity of the item, N(0, POPULARITY)

Nothing here depends on a model or a metric.

Why this design: a contrastively pre-trained encoder keeps what title and image share (department,
kind, colour) and may drop the rest. Adapting it for everybody can recover the pattern, and each
group's adapter the group's own aspect. Since assortments change, ranked items have few
interactions, as in a real shop. But tastes are narrow: users who share one buy the same few items,
so methods without content (`without_mm`, `item_knn`) are strong here too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from perpeft_ray.data.toyshop_items import ASPECTS, draw_item, draw_items, write_title

USERS = 3_000
ITEMS = 3_000
SHORTEST = 5
LONGEST = 10
HOME = 3.5
OWN = 4.5
COMMON = 3.0
NEW = 2.5
NEWNESS = 0.15
EARLIEST = -0.3
POPULARITY = 0.4

COMMON_ASPECT = "pattern"
"""What every user attends to."""

GROUPS: tuple[tuple[str, str], ...] = (
    ("kitchen", "border"),
    ("garden", "brand"),
    ("office", "material"),
    ("sports", "style"),
    ("nursery", "colour"),
    ("travel", "kind"),
)
"""Home department and own aspect of every group."""

# Streams of random numbers: changing one draw does not change the others.
_ITEM_STREAM, _LOOK_STREAM, _USER_STREAM, _PRETRAINING_STREAM = range(4)

_PLANTED = "planted.parquet"
_START = 1_600_000_000  # seconds; September 2020
_YEAR = 365 * 86_400


@dataclass(frozen=True)
class Shop:
    """The planted shop of a seed, without titles and images: U users, I items, N interactions.

    Interactions are ordered by user, then time.
    """

    items: NDArray[np.int64]
    """Aspect values [I, aspects], columns in the order of ASPECTS."""
    group: NDArray[np.int64]
    """Group of every user, [U]."""
    user: NDArray[np.int64]
    """User of every interaction, [N]."""
    item: NDArray[np.int64]
    """Item of every interaction, [N]."""
    timestamp: NDArray[np.int64]
    """Unix seconds of every interaction, [N]."""
    released: NDArray[np.float64]
    """When every item was released, in years, [I]."""
    last_utility: NDArray[np.float64]
    """Utility of every item at the user's last step, [U, I]; -inf for items that the user had or
    that were not released."""


def write_toyshop(folder: Path, seed: int) -> None:
    """Write the catalogue of a seed into an empty data folder: interactions, items, images.

    `planted.parquet` (user_id, group) is for tests and figures only: no method reads it.
    """
    shop = plant(seed)
    (folder / "images").mkdir()
    _write_tables(folder, shop)
    _write_items(folder, shop.items, seed)


def planted_groups(folder: Path) -> pd.DataFrame:
    """The planted group of every user: `user_id` str, `group` int64 (a row of GROUPS)."""
    return pd.read_parquet(folder / _PLANTED)


def plant(seed: int) -> Shop:
    """Draw the items, users and sequences of a seed, as the module's docstring says."""
    rng = np.random.default_rng([seed, _ITEM_STREAM])
    items = draw_items(rng, ITEMS, "catalogue")
    popularity = rng.normal(0, POPULARITY, size=ITEMS)
    released = rng.uniform(EARLIEST, 1, size=ITEMS)

    rng = np.random.default_rng([seed, _USER_STREAM])
    group = rng.permutation(np.arange(USERS) % len(GROUPS))
    sequences, times, last_utility = [], [], np.empty((USERS, ITEMS))
    for user in range(USERS):
        taste = popularity + _taste(rng, items, GROUPS[group[user]])
        times.append(_times(rng, int(rng.integers(SHORTEST, LONGEST + 1))))
        sequence, last_utility[user] = _sequence(rng, taste, released, times[user] / _YEAR)
        sequences.append(sequence)
    return Shop(
        items=items,
        group=group,
        user=np.repeat(np.arange(USERS), [len(sequence) for sequence in sequences]),
        item=np.concatenate(sequences),
        timestamp=_START + np.concatenate(times),
        released=released,
        last_utility=last_utility,
    )


def other_items(count: int, seed: int) -> tuple[list[str], NDArray[np.uint8]]:
    """Titles and images of items outside every catalogue, for pre-training an encoder.

    Returns `count` titles and uint8 [count, IMAGE_SIZE, IMAGE_SIZE, 3]. They come from the half of
    all possible items that catalogues never draw from (see `toyshop_items`).
    """
    rng = np.random.default_rng([seed, _PRETRAINING_STREAM])
    items = draw_items(rng, count, "pretraining")
    titles = [write_title(rng, item) for item in items]
    return titles, np.stack([draw_item(rng, item) for item in items])


def _taste(
    rng: np.random.Generator, items: NDArray[np.int64], group: tuple[str, str]
) -> NDArray[np.float64]:
    """A new user's taste for every item, [I]: home, own aspect, common aspect."""
    columns = {aspect: column for column, aspect in enumerate(ASPECTS)}
    home, own = group
    taste = HOME * (items[:, columns["department"]] == ASPECTS["department"].index(home))
    for aspect, weight in ((own, OWN), (COMMON_ASPECT, COMMON)):
        taste += weight * (items[:, columns[aspect]] == rng.integers(len(ASPECTS[aspect])))
    return taste  # type: ignore[no-any-return]  # NumPy says Any


def _times(rng: np.random.Generator, count: int) -> NDArray[np.int64]:
    """Distinct seconds of the year, ascending, [count]."""
    return np.sort(rng.choice(_YEAR, size=count, replace=False))


def _sequence(
    rng: np.random.Generator,
    taste: NDArray[np.float64],
    released: NDArray[np.float64],
    times: NDArray[np.float64],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """One user's items in order, and the utilities [I] of the last draw."""
    chosen: list[int] = []
    utility = taste
    for time in times:
        age = time - released
        utility = np.where(age >= 0, taste + NEW * (age <= NEWNESS), -np.inf)
        utility[chosen] = -np.inf
        # The largest of utility + Gumbel noise is a draw from the softmax.
        chosen.append(int(np.argmax(utility + rng.gumbel(size=len(utility)))))
    return np.array(chosen), utility


def _write_tables(folder: Path, shop: Shop) -> None:
    interactions = pd.DataFrame(
        {
            "user_id": _names("user", shop.user),
            "item_id": _names("item", shop.item),
            "timestamp": shop.timestamp,
        }
    )
    interactions = interactions.sort_values("timestamp", kind="stable", ignore_index=True)
    interactions.to_parquet(folder / "interactions.parquet", index=False)
    planted = pd.DataFrame({"user_id": _names("user", np.arange(USERS)), "group": shop.group})
    planted.to_parquet(folder / _PLANTED, index=False)


def _write_items(folder: Path, items: NDArray[np.int64], seed: int) -> None:
    rng = np.random.default_rng([seed, _LOOK_STREAM])
    item_ids = _names("item", np.arange(len(items)))
    titles = []
    for item_id, item in zip(item_ids, items, strict=True):
        titles.append(write_title(rng, item))
        Image.fromarray(draw_item(rng, item)).save(folder / "images" / f"{item_id}.png")
    images = [f"images/{item_id}.png" for item_id in item_ids]
    table = pd.DataFrame({"item_id": item_ids, "title": titles, "image": images})
    table.to_parquet(folder / "items.parquet", index=False)


def _names(prefix: str, numbers: NDArray[np.int64]) -> list[str]:
    return [f"{prefix}{number:04d}" for number in numbers]
