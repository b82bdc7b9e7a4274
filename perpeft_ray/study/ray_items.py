"""Ray Data for the catalogue store: turns items into arrays on the nodes of the study's Ray.

A thin adapter: the step is `perpeft_ray.data.item_arrays.ItemStep`, and the process that builds the
store writes. Workers return arrays instead of writing to the shared folder, since nodes that map
one file over a network file system may overwrite each other's pages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import pandas as pd

from perpeft_ray.data.item_arrays import ItemArrays, ItemMap, ItemStep, in_this_process

LEAST_IMAGES = 5_000
"""With fewer images this process does all, at 200 per second: workers take 10 s to start."""
LEAST_CPUS = 4
"""With fewer CPUs this process's threads are as fast: on two, 1,000 images of CLIP's size took
5.7 s by threads and 6.9 s by running workers."""


def telling(tell: Callable[[int, int], None]) -> ItemMap:
    """`on_ray_if_many`; calls `tell` after every block with the items done and all items."""

    def mapped(step: ItemStep, blocks: Sequence[pd.DataFrame]) -> Iterator[ItemArrays]:
        done = int(blocks[0].index[0]) if blocks else 0
        for arrays in on_ray_if_many(step, blocks):
            yield arrays
            done += len(arrays["token_counts"])
            tell(done - 1, int(blocks[-1].index[-1]))  # row 0 is padding

    return mapped


def on_ray_if_many(step: ItemStep, blocks: Sequence[pd.DataFrame]) -> Iterable[ItemArrays]:
    """An `ItemMap`: Ray Data if there are enough images and CPUs to pay for it."""
    images = sum(int((block["image"] != "").sum()) for block in blocks)
    if not step.preprocessor.image_size or images < LEAST_IMAGES or _cpus() < LEAST_CPUS:
        return in_this_process(step, blocks)
    return on_ray(step, blocks)


def on_ray(step: ItemStep, blocks: Sequence[pd.DataFrame]) -> Iterator[ItemArrays]:
    """An `ItemMap`: every block is a task of one CPU on any node of the Ray that is running.

    Every node must see the images' folder under the same path. Blocks of a lost node run again
    elsewhere. Ray's object store bounds the memory, whatever the number of items.
    """
    import ray.data

    from perpeft_ray.study.runtime import quiet_data

    quiet_data()
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.raise_original_map_exception = True
    items = ray.data.from_pandas(list(blocks))
    arrays = items.map_batches(step, batch_size=None, batch_format="pandas", num_cpus=1)
    yield from arrays.iter_batches(batch_size=None, batch_format="numpy")


def _cpus() -> float:
    import ray

    return float(ray.cluster_resources().get("CPU", 0)) if ray.is_initialized() else 0.0  # type: ignore[no-untyped-call]  # Ray leaves it untyped
