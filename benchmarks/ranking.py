"""Exact full ranking: users per second, and memory that does not grow with users x items.

    python benchmarks/ranking.py

20,825 items and D = 32 as in the authors' measurement; a plain loop, one user at a time, in the
same run; and 10,000 users among a million items, with what a million users would take at that
pace. Memory is the ranking's own (peak of a fresh process minus what it was given).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from _bench import Row, in_fresh_process, record, seconds

from perpeft_ray.data.split import Histories
from perpeft_ray.recommender.ranking import target_ranks
from perpeft_ray.train.memory import PeakMemory

ITEMS, UNITS, LENGTH = 20_825, 32, 7
AUTHORS_USERS_A_SECOND = 163.0


def main() -> None:
    """Measure and record."""
    users = 12_076
    inputs = problem(users, ITEMS)
    ours = users / seconds(lambda: target_ranks(*inputs), repeats=5)
    few = problem(100, ITEMS)
    plain = len(few[2]) / seconds(lambda: one_at_a_time(*few), repeats=3)
    if not np.array_equal(one_at_a_time(*few), target_ranks(*few)):
        raise RuntimeError("the plain loop has other ranks")
    rows = [
        Row("ranking", "20,825 items", "users/s", ours, "users/s", AUTHORS_USERS_A_SECOND),
        Row("ranking", "20,825 items, plain loop", "users/s", plain, "users/s"),
        Row("ranking", "20,825 items against plain loop", "users/s", ours, "users/s", plain),
    ]
    for count, items in ((1_000, ITEMS), (10_000, ITEMS), (100, 1_000_000), (2_000, 1_000_000)):
        found = in_fresh_process(str(Path(__file__)), str(count), str(items))
        case = f"{count:,} users x {items:,} items"
        rows += [
            Row("ranking", case, "seconds", found["seconds"], "s"),
            Row("ranking", case, "peak memory", found["peak_mb"], "MB"),
        ]
        if (count, items) == (2_000, 1_000_000):
            hours = found["seconds"] / count * 1e6 / 3600
            rows.append(Row("ranking", "1 M users x 1 M items", "extrapolated", hours, "h"))
    record(rows)


def problem(users: int, items: int) -> tuple[torch.Tensor, torch.Tensor, np.ndarray, Histories]:
    """Random states, embeddings, targets and histories."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    known = rng.integers(1, items + 1, users * LENGTH).astype(np.int32)
    history = Histories(np.arange(users + 1, dtype=np.int64) * LENGTH, known)
    states, embeddings = torch.randn(users, UNITS), torch.randn(items + 1, UNITS)
    return states, embeddings, rng.integers(1, items + 1, users), history


def one_at_a_time(
    states: torch.Tensor, embeddings: torch.Tensor, targets: np.ndarray, history: Histories
) -> np.ndarray:
    """Ranks by a plain program: lists, scores and sorts the candidates of each user."""
    ranks = []
    for user, target in enumerate(targets.tolist()):
        known = set(history.items[history.offsets[user] : history.offsets[user + 1]].tolist())
        others = [i for i in range(1, len(embeddings)) if i not in known and i != target]
        scores = embeddings[[target, *others]] @ states[user]
        order = (-scores).argsort().argsort()
        ranks.append(int(order[0]))
    return np.array(ranks)


def measure(users: int, items: int) -> dict[str, float]:
    """Time and own memory in this process."""
    inputs = problem(users, items)
    target_ranks(*problem(16, 100))  # libraries are loaded
    memory = PeakMemory(torch.device("cpu"))
    before = memory.megabytes()
    taken = seconds(lambda: target_ranks(*inputs), repeats=1, warm_up=0)
    return {"seconds": taken, "peak_mb": memory.megabytes() - before}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(int(sys.argv[2]), int(sys.argv[3]))))
    else:
        main()
