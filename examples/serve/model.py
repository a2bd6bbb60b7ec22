"""The model in a process of its own: jobs in, answers out; a process that dies begins anew, and no job is lost."""

import io
import logging
import multiprocessing
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from PIL import Image

from ada.policy import AdaPolicy, PerImage
from ada.rollouts import EMBEDDED, EMBEDDED_ARGUMENTS, FrozenPipeline
from blockdance import full_compute

logger = logging.getLogger(__name__)


class ModelError(Exception):
    """The model refused a job; the reason is for its user."""


class ModelDiedError(Exception):
    """The model's process ended while it worked on a job, each time that it was tried."""


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """What the service generates with.

    Args:
        pipeline: folder or Hub id of a diffusers pipeline.
        policy: folder or Hub id of a policy; None where every step computes.
        steps: denoising steps.
        arguments: further arguments of the pipeline's call.
        device: where it runs.
        load_timeout: seconds after which loading is given up; None where it may take as long as it takes.
        batch_timeout: seconds after which a batch is given up and the process killed.
    """

    pipeline: str = EMBEDDED
    policy: str | None = "checkpoints/ada-emoji"
    steps: int = 20
    arguments: Mapping[str, Any] = field(default_factory=EMBEDDED_ARGUMENTS.copy)
    device: str = "cpu"
    load_timeout: float | None = None
    batch_timeout: float = 60.0


@dataclass(frozen=True)
class Job:
    """One image to make.

    Args:
        prompt: what it shows.
        seed: of its noise; the same prompt, seed and wish give the same image in any batch.
        wish: option of the policy and its value, such as `("compute", 0.8)`; None for the policy's own.
    """

    prompt: str
    seed: int
    wish: tuple[str, float] | None = None


@dataclass(frozen=True)
class Answer:
    """An image.

    Args:
        png: the file.
        actions: what every denoising step did: 0 computed, k was the k-th kind of reuse.
        compute_saved: share of the denoising MACs.
        batch_size: images that were made with it, itself included.
    """

    png: bytes
    actions: list[int]
    compute_saved: float
    batch_size: int


class Engine:
    """A pipeline and its policy.

    Args:
        settings: which.

    Raises:
        BlockDanceError: the policy is for another model, or cannot decide or keep to its own budget in so many steps.
    """

    def __init__(self, settings: ModelSettings) -> None:
        self._pipeline = FrozenPipeline(settings.pipeline, settings.steps, settings.arguments).to(settings.device)
        self._policy = None if settings.policy is None else AdaPolicy.from_pretrained(settings.policy).to(settings.device)
        if self._policy is not None:
            self._policy.check(self._pipeline.transformer)
            self._policy.check_budget(settings.steps)

    def __call__(self, jobs: Sequence[Job]) -> list[Answer]:
        """Makes the images of a batch.

        Raises:
            ValueError: one of the wishes cannot be met.
        """
        plan: Any = full_compute(len(jobs), self._pipeline.num_inference_steps)
        if self._policy is not None:
            options = {job.wish: self._policy.with_options(**dict([job.wish] if job.wish else [])) for job in jobs}
            plan = PerImage([options[job.wish] for job in jobs])
        made = self._pipeline.generate([job.prompt for job in jobs], [job.seed for job in jobs], plan)
        pixels = (made.images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        shares = made.report.compute_saved.tolist()
        return [
            Answer(_png(Image.fromarray(image)), actions, saved, len(jobs))
            for image, actions, saved in zip(pixels, made.report.actions.tolist(), shares, strict=True)
        ]


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _work(connection: Connection, settings: ModelSettings) -> None:
    """The process: a batch that nobody can serve gives its reason; any other error ends the process, whose state it may have spoilt."""
    for name in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group, they are the service's: it lets the batch end
        signal.signal(name, signal.SIG_IGN)
    engine = Engine(settings)
    connection.send("ready")
    while True:
        try:
            jobs = connection.recv()
        except EOFError:  # the service is gone
            return
        try:
            connection.send(engine(jobs))
        except ValueError as error:
            connection.send(ModelError(str(error)))


class ModelProcess:
    """Asks an `Engine` in a process of its own. Not for several threads at once.

    A batch that fails is tried again job by job, so that one user's job cannot spoil another's; a job is given up when the process
    has died over it alone twice.

    Args:
        settings: of the model.

    Raises:
        ModelDiedError: it could not be loaded.
    """

    def __init__(self, settings: ModelSettings) -> None:
        self._settings = settings
        self._is_loaded = False
        self.num_restarts = 0
        self._start()

    @property
    def pid(self) -> int | None:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.is_alive()

    @property
    def is_ready(self) -> bool:
        """Whether it is loaded: one that begins anew is alive long before."""
        return self._is_loaded and self.is_alive

    def __call__(self, jobs: Sequence[Job], is_wanted: Callable[[int], bool] = lambda place: True) -> list[Answer | Exception]:
        """For every job its answer, or why there is none.

        Args:
            jobs: a batch.
            is_wanted: whether anybody still waits for the job at a place of it; asked before it is tried again.
        """
        for tries_left in (1, 0):
            try:
                return list(self._ask(jobs))
            except ModelError as error:
                if len(jobs) == 1:
                    return [error]
            except ModelDiedError as error:
                logger.error("The model's process died over a batch of %d and begins anew.", len(jobs))
                self.close()
                self.num_restarts += 1
                self._start()
                if len(jobs) == 1 and not tries_left:
                    return [error]
            if len(jobs) > 1:
                given_up: Answer | Exception = ModelDiedError("Nobody waits for it any longer.")
                return [self._alone(job) if is_wanted(place) else given_up for place, job in enumerate(jobs)]
        raise AssertionError("one of the two tries has returned")

    def _alone(self, job: Job) -> Answer | Exception:
        """A job's answer, or why there is none: also where the model cannot be loaded again, so that its neighbours keep theirs."""
        try:
            return self([job])[0]
        except ModelDiedError as error:
            return error

    def revive(self) -> None:
        """Starts the process again where it is dead."""
        if not self.is_alive:
            logger.error("The model's process died between batches and begins anew.")
            self.close()
            self.num_restarts += 1
            self._start()

    def close(self) -> None:
        """Ends the process."""
        self._is_loaded = False
        self._connection.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, self._settings), daemon=True)
        try:
            self._process.start()
        except OSError as error:
            raise ModelDiedError(f"The model's process cannot be started: {error}.") from error
        theirs.close()
        self._receive(self._settings.load_timeout)
        self._is_loaded = True

    def _ask(self, jobs: Sequence[Job]) -> list[Answer]:
        try:
            self._connection.send(list(jobs))
        except OSError as error:
            raise ModelDiedError("The model's process is gone.") from error
        reply: list[Answer] | ModelError = self._receive(self._settings.batch_timeout)
        if isinstance(reply, ModelError):
            raise reply
        return reply

    def _receive(self, timeout: float | None) -> Any:
        try:
            if self._connection.poll(timeout):
                return self._connection.recv()
        except (EOFError, OSError) as error:
            raise ModelDiedError("The model's process died. Its own output says why.") from error
        self._process.kill()
        raise ModelDiedError(f"The model gave no answer within {timeout:g} s.")
