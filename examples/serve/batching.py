"""Batches out of requests: everything in the event loop, without locks; the model in one thread beside it."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from examples.serve.metrics import Metrics
from examples.serve.model import Answer, Job

logger = logging.getLogger(__name__)


class QueueFullError(Exception):
    """As many requests wait as may."""


class ClosingError(Exception):
    """The service is shutting down."""


class Batcher:
    """Gathers jobs into batches and hands each its answer.

    While a batch runs, what arrives waits; the next batch takes the oldest. A job whose `ask` is cancelled before its turn leaves
    the queue; after that, it runs to its end with its batch and is dropped.

    Args:
        generate: makes a batch; called in one thread, one batch at a time, with a function that tells of a place in it whether anybody
            still waits.
        max_batch: most images of a batch.
        max_waiting: most jobs that wait.
        linger: seconds that an idle model waits for more jobs than the first.
        metrics: told of every batch.
    """

    def __init__(
        self,
        generate: Callable[[Sequence[Job], Callable[[int], bool]], Sequence[Answer | Exception]],
        *,
        max_batch: int,
        max_waiting: int,
        linger: float,
        metrics: Metrics,
    ) -> None:
        self._generate, self._metrics = generate, metrics
        self._max_batch, self._max_waiting, self._linger = max_batch, max_waiting, linger
        self._waiting: dict[asyncio.Future[Answer], Job] = {}
        self._arrived = asyncio.Event()
        self._is_closing = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._running = asyncio.create_task(self._run())
        self.seconds_per_batch = 1.0
        metrics.waiting.set_function(lambda: len(self._waiting))

    @property
    def is_closing(self) -> bool:
        return self._is_closing

    async def ask(self, job: Job) -> Answer:
        """The answer to a job.

        Raises:
            QueueFullError, ClosingError: it is not taken.
            ModelError, ModelDiedError: it has none.
        """
        if self._is_closing:
            raise ClosingError("The service is shutting down; ask again when it is back.")
        if len(self._waiting) >= self._max_waiting:
            raise QueueFullError(f"{self._max_waiting} requests are waiting already; ask again later.")
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[answer] = job
        self._arrived.set()
        try:
            return await answer
        finally:
            self._waiting.pop(answer, None)

    async def beside_batches(self, function: Callable[[], None]) -> None:
        """Calls a function in the model's thread, between two batches."""
        await asyncio.get_running_loop().run_in_executor(self._thread, function)

    async def close(self) -> None:
        """Takes no more jobs, and returns when all that were taken are answered."""
        self._is_closing = True
        self._arrived.set()
        await self._running
        self._thread.shutdown()

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            if len(self._waiting) < self._max_batch and not self._is_closing:
                await asyncio.sleep(self._linger)
            batch = dict(islice(self._waiting.items(), self._max_batch))
            for answer in batch:
                del self._waiting[answer]
            if batch:
                await self._make(batch)
            elif self._is_closing:
                return
            if not self._waiting and not self._is_closing:
                self._arrived.clear()

    async def _make(self, batch: dict[asyncio.Future[Answer], Job]) -> None:
        loop = asyncio.get_running_loop()
        start, answers = loop.time(), list(batch)

        def is_wanted(place: int) -> bool:
            return not answers[place].done()

        made: Sequence[Answer | Exception]
        try:
            made = await loop.run_in_executor(self._thread, self._generate, list(batch.values()), is_wanted)
        except Exception as error:  # the model cannot be started again: its next batch tries once more
            logger.exception("A batch of %d failed.", len(batch))
            made = [error] * len(batch)
        self.seconds_per_batch = loop.time() - start
        self._metrics.batch_size.observe(len(batch))
        self._metrics.batch_seconds.observe(self.seconds_per_batch)
        for answer, one in zip(batch, made, strict=True):
            if answer.done():  # cancelled meanwhile
                continue
            if isinstance(one, Exception):
                answer.set_exception(one)
            else:
                answer.set_result(one)
