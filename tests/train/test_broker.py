"""Trials on their way to workers: who gets which, and what becomes of those that lose them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from perpeft_ray.train.broker import MAX_LOSSES, Broker, Failure, Task
from perpeft_ray.train.outcome import EpochRecord

Story = Callable[[Broker], Awaitable[None]]


def _task(name: str) -> Task:
    return Task(name, None, False, "checkpoints")


def _epoch(number: int) -> EpochRecord:
    return EpochRecord(3, number, 1.0, 0.0, None, None, False)


def _tell(story: Story) -> None:
    async def whole() -> None:
        await asyncio.wait_for(story(Broker()), timeout=10)

    asyncio.run(whole())


async def _is_waiting(call: Awaitable[Any]) -> bool:
    task = asyncio.ensure_future(call)
    done, _ = await asyncio.wait([task], timeout=0.05)
    task.cancel()
    return not done


def test_every_worker_of_a_slot_gets_the_same_trials_in_their_order():
    async def story(broker: Broker) -> None:
        for name in ("a", "b", "c"):
            await broker.submit(_task(name))
        assert await broker.take(0, 0) == (1, _task("a"))
        assert await broker.take(1, 0) == (1, _task("b"))
        assert await broker.take(0, 0) == (1, _task("a"))  # slot 0's other worker
        assert await _is_waiting(broker.take(0, 1))  # which is done before the first
        await broker.end(0, 1, None)
        assert await broker.take(0, 1) == (2, _task("c"))

    _tell(story)


def test_a_trial_begins_when_workers_first_take_it():
    async def story(broker: Broker) -> None:
        begun = asyncio.ensure_future(broker.begun("a"))
        await broker.submit(_task("a"))
        await asyncio.sleep(0.05)
        assert not begun.done()
        before = datetime.now(UTC)
        await broker.take(0, 0)
        after = datetime.now(UTC)
        await broker.lost(0, "ActorDiedError", for_want_of_memory=False)
        await broker.take(0, 0)
        assert before <= await begun == await broker.begun("a") <= after

    _tell(story)


def test_epochs_come_once_though_workers_start_again():
    async def story(broker: Broker) -> None:
        await broker.submit(_task("a"))
        await broker.take(0, 0)
        for number in (1, 2):
            assert not await broker.report(0, 1, _epoch(number))
        await broker.lost(0, "ActorDiedError", for_want_of_memory=False)
        assert await broker.take(0, 0) == (1, _task("a"))
        for number in (1, 2, 3):
            await broker.report(0, 1, _epoch(number))
        assert [record.epoch for record in await broker.news("a")] == [1, 2, 3]

    _tell(story)


def test_a_trial_that_nobody_waits_for_is_stopped_and_the_next_is_taken():
    async def story(broker: Broker) -> None:
        for name in ("a", "b", "c"):
            await broker.submit(_task(name))
        await broker.take(0, 0)
        await broker.drop("a")
        await broker.drop("b")  # nor is it begun
        assert await broker.report(0, 1, _epoch(1))
        await broker.end(0, 1, None)
        assert await broker.take(0, 1) == (2, _task("c"))

    _tell(story)


def test_a_trial_that_loses_its_workers_again_and_again_in_one_epoch_fails():
    async def story(broker: Broker) -> None:
        await broker.submit(_task("a"))
        await broker.take(0, 0)
        for number in range(1, 5):  # not where it gets further each time
            await broker.lost(0, "ActorDiedError", for_want_of_memory=False)
            await broker.report(0, 1, _epoch(number))
        for _ in range(MAX_LOSSES + 1):
            await broker.lost(0, "ActorDiedError", for_want_of_memory=False)
        *_, last = await broker.news("a")
        assert isinstance(last, Failure)
        assert str(last.error).startswith("workers were lost 3 times in epoch 5; killed, perhaps")
        await broker.submit(_task("b"))
        assert await broker.take(0, 0) == (2, _task("b"))

    _tell(story)


def test_a_trial_that_needs_more_memory_than_there_is_fails_at_once():
    async def story(broker: Broker) -> None:
        await broker.submit(_task("a"))
        await broker.take(0, 0)
        await broker.lost(0, "23.1GB used / 24.0GB limit", for_want_of_memory=True)
        [failure] = await broker.news("a")
        assert isinstance(failure, Failure)
        assert repr(failure.error) == "MemoryError('23.1GB used / 24.0GB limit')"

    _tell(story)


def test_what_workers_say_of_a_trial_that_has_ended_counts_for_nothing():
    async def story(broker: Broker) -> None:
        for name in ("a", "b"):
            await broker.submit(_task(name))
        await broker.take(0, 0)
        await broker.end(0, 1, Failure(ValueError("first")))
        await broker.end(0, 1, Failure(ValueError("second")))
        await broker.take(0, 1)
        assert await broker.report(0, 1, _epoch(1))
        [failure] = await broker.news("a")
        assert isinstance(failure, Failure)
        assert str(failure.error) == "first"
        assert await _is_waiting(broker.news("b"))

    _tell(story)


@pytest.mark.parametrize("busy", [False, True])
def test_the_end_ends_workers_that_wait_and_stops_those_that_train(busy):
    async def story(broker: Broker) -> None:
        if busy:
            await broker.submit(_task("a"))
            await broker.take(0, 0)
        waiting = asyncio.ensure_future(broker.take(0, 1))
        await asyncio.sleep(0)
        await broker.close()
        assert await waiting is None
        assert await broker.report(0, 1, _epoch(1))

    _tell(story)
