"""The catalogue store made on two Ray nodes, of which one dies in the middle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.small_shop import write_small_shop

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]

# In a process of its own: Ray in this one may be another test's.
SCRIPT = """
import json, sys, time
from pathlib import Path

import numpy as np
import ray
from ray.cluster_utils import Cluster

from perpeft_ray.data import catalogue
from perpeft_ray.data.interactions import load_folder
from perpeft_ray.study.ray_items import on_ray, telling

folder, dies = Path(sys.argv[1]), sys.argv[2] == "dies"
catalogue.BLOCK = 8


class Slow:
    fingerprint, image_size, max_tokens, pad_token_id = "slow", 4, 12, 99

    def __init__(self, log):
        self.log = log

    def image(self, image):
        if self.log is not None:
            time.sleep(0.02)
            node = ray.get_runtime_context().get_node_id()
            (self.log / f"{node}-{time.time_ns()}").touch()
        return np.asarray(image.resize((4, 4))).transpose(2, 0, 1)

    def tokens(self, titles):
        return [[1, *(ord(c) for c in title[:10]), 2] for title in titles]


def contents(store):
    return {file.name: file.read_bytes() for file in store.folder.iterdir()}


shop = load_folder(folder / "shop", "")
alone = catalogue.build_catalogue(shop, Slow(None), folder / "alone")
(folder / "log").mkdir()
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
second = cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
ray.init(address=cluster.address, log_to_driver=False)
left = [second]


def tell(done, total):
    if dies and done >= total // 4 and left:
        cluster.remove_node(left.pop(), allow_graceful=False)


from perpeft_ray.study import ray_items
ray_items.LEAST_IMAGES = ray_items.LEAST_CPUS = 1
made = catalogue.build_catalogue(shop, Slow(folder / "log"), folder / "nodes", telling(tell))
on = [path.name.split("-")[0] for path in (folder / "log").iterdir()]
print(json.dumps({
    "same": contents(made) == contents(alone),
    "died": not left,
    "nodes": sorted(on.count(node) for node in set(on)),
}))
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.parametrize("what", ["lives", "dies"])
def test_two_nodes_make_the_store_of_one(tmp_path, what):
    write_small_shop(tmp_path / "shop", items=400)
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), what],
        cwd=ROOT,
        env=own | {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=500,
    )
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["same"]
    assert found["died"] == (what == "dies")
    assert len(found["nodes"]) == 2
    assert min(found["nodes"]) >= 8  # each node did at least a block
    assert sum(found["nodes"]) >= 399
