"""Who shares a batch, who waits, who leaves: the batcher with a model that the test holds up."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from examples.serve.batching import Batcher, ClosingError, QueueFullError
from examples.serve.metrics import Metrics
from examples.serve.model import Answer, Job, ModelError


class HeldModel:
    """Answers a batch when it is let; refuses the prompt "bad"."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.wanted: list[list[bool]] = []
        self.may_go = threading.Event()

    def __call__(self, jobs: Sequence[Job], is_wanted: Callable[[int], bool]) -> list[Answer | Exception]:
        self.batches.append([job.prompt for job in jobs])
        assert self.may_go.wait(10)
        self.wanted.append([is_wanted(place) for place in range(len(jobs))])
        return [ModelError("no") if job.prompt == "bad" else Answer(job.prompt.encode(), [], 0.0, len(jobs)) for job in jobs]


def run(scenario: Callable[[Batcher, HeldModel], Awaitable[None]], **options: Any) -> HeldModel:
    """Runs a scenario in a loop of its own; what was taken is answered at its end."""
    model = HeldModel()

    async def play() -> None:
        batcher = Batcher(model, metrics=Metrics(), **{"max_batch": 2, "max_waiting": 3, "linger": 0.0} | options)
        try:
            await scenario(batcher, model)
        finally:
            model.may_go.set()
            await batcher.close()

    asyncio.run(asyncio.wait_for(play(), 20))
    return model


async def ask(batcher: Batcher, *prompts: str) -> list[asyncio.Task[Answer]]:
    """Asks, and lets the batcher take what it takes."""
    tasks = [asyncio.create_task(batcher.ask(Job(prompt, 0))) for prompt in prompts]
    await asyncio.sleep(0.1)
    return tasks


def test_what_arrives_while_a_batch_runs_shares_the_next_oldest_first() -> None:
    async def scenario(batcher: Batcher, model: HeldModel) -> None:
        tasks = await ask(batcher, "a") + await ask(batcher, "b", "c", "d")
        model.may_go.set()
        assert [(await task).png for task in tasks] == [b"a", b"b", b"c", b"d"]
        assert [(await task).batch_size for task in tasks] == [1, 2, 2, 1]

    assert run(scenario).batches == [["a"], ["b", "c"], ["d"]]


def test_an_idle_model_waits_a_moment_for_company() -> None:
    async def scenario(batcher: Batcher, model: HeldModel) -> None:
        model.may_go.set()
        first = asyncio.create_task(batcher.ask(Job("a", 0)))
        await asyncio.sleep(0.05)
        await asyncio.gather(first, batcher.ask(Job("b", 0)))

    assert run(scenario, linger=0.5).batches == [["a", "b"]]


def test_one_more_than_may_wait_is_refused() -> None:
    async def scenario(batcher: Batcher, model: HeldModel) -> None:
        tasks = await ask(batcher, "a") + await ask(batcher, "b", "c", "d")
        with pytest.raises(QueueFullError, match="3 requests are waiting already"):
            await batcher.ask(Job("e", 0))
        model.may_go.set()
        assert len(await asyncio.gather(*tasks)) == 4, "those that wait are served"
        await batcher.ask(Job("f", 0))

    assert run(scenario).batches[-1] == ["f"]


def test_who_leaves_before_its_turn_is_not_made_and_frees_its_place() -> None:
    async def scenario(batcher: Batcher, model: HeldModel) -> None:
        running, *waiting = await ask(batcher, "a") + await ask(batcher, "b", "c", "d")
        waiting[0].cancel()
        running.cancel()
        late = await ask(batcher, "e")
        model.may_go.set()
        assert [(await task).png for task in [*waiting[1:], *late]] == [b"c", b"d", b"e"]

    assert run(scenario).batches == [["a"], ["c", "d"], ["e"]]


def test_a_refused_job_does_not_touch_its_neighbours() -> None:
    async def scenario(batcher: Batcher, model: HeldModel) -> None:
        model.may_go.set()
        good, bad = await ask(batcher, "good", "bad")
        assert (await good).png == b"good"
        with pytest.raises(ModelError, match="no"):
            await bad

    assert run(scenario).batches == [["good", "bad"]]


def test_closing_answers_what_was_taken_and_takes_no_more() -> None:
    async def scenario(batcher: Batcher, model: HeldModel) -> None:
        tasks = await ask(batcher, "a") + await ask(batcher, "b", "c", "d")
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0.1)
        assert not closing.done()
        with pytest.raises(ClosingError, match="shutting down"):
            await batcher.ask(Job("e", 0))
        model.may_go.set()
        await closing
        assert [task.result().png for task in tasks] == [b"a", b"b", b"c", b"d"]

    run(scenario)


def test_the_event_loop_stays_free_while_the_model_works() -> None:
    async def scenario(batcher: Batcher, model: HeldModel) -> None:
        await ask(batcher, "a")
        loop = asyncio.get_running_loop()
        start = loop.time()
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert loop.time() - start < 2
        assert not model.may_go.is_set()

    run(scenario)


def test_the_model_is_told_who_has_left_a_running_batch() -> None:
    async def scenario(batcher: Batcher, model: HeldModel) -> None:
        stays, leaves = await ask(batcher, "stays", "leaves")
        leaves.cancel()
        await asyncio.sleep(0.1)
        model.may_go.set()
        assert (await stays).png == b"stays"

    held = run(scenario, linger=0.05)
    assert (held.batches, held.wanted) == ([["stays", "leaves"]], [[True, False]])
