"""The service's HTTP interface."""

import asyncio
import base64
import logging
import math
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ConfigDict, Field

from ada.noise import NUM_SEEDS
from ada.policy import AdaPolicy, LadderPolicy
from examples.serve.batching import Batcher, ClosingError, QueueFullError
from examples.serve.metrics import Metrics
from examples.serve.model import Answer, Job, ModelDiedError, ModelError, ModelProcess, ModelSettings

logger = logging.getLogger(__name__)
PAGE = Path(__file__).parent / "index.html"
SECONDS_BETWEEN_LOOKS = 1.0
CLIENT_LEFT = 499  # nginx's number for it; nobody is there to read it


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the service takes on.

    Args:
        max_batch: most images of a batch.
        max_waiting: most requests that wait; one more gets 429.
        linger: seconds that an idle model waits for more requests than the first.
        timeout: seconds after which a request gets 504.
        max_prompt: most characters of a prompt.
        max_body: most bytes of a request's body.

    Raises:
        ValueError: one of them leaves no request through.
    """

    max_batch: int = 16
    max_waiting: int = 64
    linger: float = 0.01
    timeout: float = 180.0
    max_prompt: int = 300
    max_body: int = 16_384

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_waiting", "timeout", "max_prompt", "max_body"):
            if getattr(self, name) <= 0:
                raise ValueError(f"`{name}` must be positive; got {getattr(self, name)}.")
        if self.linger < 0:
            raise ValueError(f"`linger` must be 0 or more; got {self.linger}.")


class ImageRequest(BaseModel):
    """What a user sends: a prompt, and at most one wish."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True, str_strip_whitespace=True)
    prompt: str = Field(min_length=1)
    seed: int | None = Field(None, ge=0, lt=NUM_SEEDS)
    compute: float | None = None
    mean_compute: float | None = None
    quality: float | None = None
    quality_weight: float | None = None

    def wish(self) -> tuple[str, float] | None:
        """The wish and its value.

        Raises:
            ValueError: there is more than one.
        """
        names = ("compute", "mean_compute", "quality", "quality_weight")
        wishes = [(name, getattr(self, name)) for name in names if getattr(self, name) is not None]
        if len(wishes) > 1:
            raise ValueError(f"Give one wish; got {', '.join(name for name, _ in wishes)}.")
        return wishes[0] if wishes else None


class BodyLimit:
    """Refuses bodies that are too long while they arrive.

    Args:
        app: what is inside.
        max_body: most bytes.
    """

    def __init__(self, app: Any, max_body: int) -> None:
        self._app, self._max_body = app, max_body

    async def __call__(self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        read = 0

        async def limited() -> Any:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._max_body:
                raise HTTPException(413, f"The body has more than {self._max_body} bytes.")
            return message

        await self._app(scope, limited, send)


class Service:
    """Answers requests; what the routes share.

    Args:
        settings: what it generates with.
        limits: what it takes on.
    """

    def __init__(self, settings: ModelSettings, limits: Limits) -> None:
        self.settings, self.limits, self.metrics = settings, limits, Metrics()
        self.policy = None if settings.policy is None else AdaPolicy.from_pretrained(settings.policy)
        if self.policy is not None:
            self.policy.check_budget(settings.steps)
        self.model: ModelProcess | None = None
        self.batcher: Batcher | None = None

    @asynccontextmanager
    async def running(self, _: FastAPI) -> AsyncIterator[None]:
        """Loads the model before the first request; at the end answers what was taken."""
        self.model = await asyncio.to_thread(ModelProcess, self.settings)
        limits = self.limits
        self.batcher = Batcher(
            self.model,
            max_batch=limits.max_batch,
            max_waiting=limits.max_waiting,
            linger=limits.linger,
            metrics=self.metrics,
        )
        self.metrics.restarts.set_function(lambda: self.model.num_restarts if self.model else 0)
        watching = asyncio.create_task(self._watch(self.model, self.batcher))
        yield
        watching.cancel()
        await self.batcher.close()
        await asyncio.to_thread(self.model.close)

    async def _watch(self, model: ModelProcess, batcher: Batcher) -> None:
        """Starts the model again where it died with no request to notice: while `/health` says 503, none is sent here."""
        while True:
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
            if not model.is_alive and not batcher.is_closing:
                try:
                    await batcher.beside_batches(model.revive)
                except ModelDiedError:
                    logger.exception("The model could not be started again; the next try follows.")

    def job(self, wanted: ImageRequest) -> Job:
        """A request as a job.

        Raises:
            HTTPException: 422, with the reason.
        """
        try:
            wish = wanted.wish()
            if len(wanted.prompt) > self.limits.max_prompt:
                raise ValueError(f"`prompt` has {len(wanted.prompt)} characters; at most {self.limits.max_prompt} are taken.")
            if wish is not None and self.policy is None:
                raise ValueError(f"This service has no policy, so it takes no `{wish[0]}`.")
            if wish is not None and self.policy is not None:
                # a batch of which one wish cannot be met would be made image by image
                self.policy.with_options(**dict([wish])).check_budget(self.settings.steps)
        except (ValueError, TypeError) as error:  # TypeError: a form of policy that does not have this wish
            self.metrics.requests.labels("refused").inc()
            raise HTTPException(422, str(error)) from error
        return Job(wanted.prompt, secrets.randbelow(2**31) if wanted.seed is None else wanted.seed, wish)

    async def answer(self, job: Job, request: Request) -> Answer | None:
        """The answer to a job; None where its client has left.

        Raises:
            HTTPException: 422, 429, 503 or 504, with the reason.
        """
        assert self.batcher is not None
        asking = asyncio.create_task(self.batcher.ask(job))
        leaving = asyncio.create_task(_left(request))
        try:
            done, _ = await asyncio.wait({asking, leaving}, timeout=self.limits.timeout, return_when=asyncio.FIRST_COMPLETED)
            if asking in done:
                return asking.result()
            if leaving in done:
                return None
            raise TimeoutError(f"No image within {self.limits.timeout:g} s; ask again later.")
        except QueueFullError as error:
            wait = math.ceil(self.batcher.seconds_per_batch)
            raise self._refusal("full", 429, error, {"Retry-After": str(wait)}) from error
        except TimeoutError as error:
            raise self._refusal("late", 504, error) from error
        except ModelError as error:
            raise self._refusal("refused", 422, error) from error
        except (ClosingError, ModelDiedError) as error:
            raise self._refusal("failed", 503, error) from error
        finally:
            asking.cancel()
            leaving.cancel()

    def refused(self, reason: str, status: int) -> JSONResponse:
        """The answer to a request that was not understood, which is counted."""
        self.metrics.requests.labels("refused").inc()
        return JSONResponse({"detail": reason}, status)

    def description(self) -> dict[str, Any]:
        """What a page needs to know."""
        curve = self.policy.curve if isinstance(self.policy, LadderPolicy) else None
        return {
            "pipeline": self.settings.pipeline,
            "steps": self.settings.steps,
            "max_prompt": self.limits.max_prompt,
            "mean_compute": None if curve is None else [1 - max(curve.saved), 1 - min(curve.saved)],
            "kinds": [] if self.policy is None else [str(kind) for kind in self.policy.kinds],
        }

    def _refusal(self, outcome: str, status: int, error: Exception, headers: dict[str, str] | None = None) -> HTTPException:
        self.metrics.requests.labels(outcome).inc()
        return HTTPException(status, str(error), headers)


async def _left(request: Request) -> None:
    """Returns when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def create_app(settings: ModelSettings, limits: Limits) -> FastAPI:
    """The service as an ASGI application.

    Args:
        settings: what it generates with.
        limits: what it takes on.

    Raises:
        FileNotFoundError, BlockDanceError: there is no such policy, or it cannot decide or keep to its own budget in so many steps.
        ValueError: a batch that hangs would be noticed when nobody waits for it any longer.
    """
    if settings.batch_timeout >= limits.timeout:
        raise ValueError(
            f"`model.batch_timeout` must be below `limits.timeout`, or those who wait are gone when a batch is tried again; got "
            f"{settings.batch_timeout:g} and {limits.timeout:g} s."
        )
    service = Service(settings, limits)
    app = FastAPI(title="BlockDance-Ada", lifespan=service.running)
    app.add_middleware(BodyLimit, max_body=limits.max_body)
    app.state.service = service

    @app.exception_handler(RequestValidationError)
    async def refuse(_: Request, error: RequestValidationError) -> JSONResponse:
        # without the input itself, which may be no text that can be sent
        reasons = [f"{'.'.join(map(str, one['loc'][1:])) or 'body'}: {one['msg']}" for one in error.errors()]
        return service.refused("; ".join(reasons).encode("utf-8", "replace").decode(), 422)

    @app.exception_handler(413)
    async def refuse_long(_: Request, error: HTTPException) -> JSONResponse:
        return service.refused(error.detail, 413)

    @app.post("/images")
    async def make_image(wanted: ImageRequest, request: Request) -> Response:
        started = asyncio.get_running_loop().time()
        job = service.job(wanted)
        answer = await service.answer(job, request)
        if answer is None:
            service.metrics.requests.labels("left").inc()
            return Response(status_code=CLIENT_LEFT)
        seconds = asyncio.get_running_loop().time() - started
        service.metrics.requests.labels("answered").inc()
        service.metrics.latency.observe(seconds)
        service.metrics.compute_saved.observe(answer.compute_saved)
        return JSONResponse(
            {
                "image": base64.b64encode(answer.png).decode(),
                "seed": job.seed,
                "actions": answer.actions,
                "compute_saved": round(answer.compute_saved, 4),
                "batch_size": answer.batch_size,
                "seconds": round(seconds, 3),
            }
        )

    @app.get("/health")
    async def health() -> JSONResponse:
        model, batcher = service.model, service.batcher
        is_ready = model is not None and model.is_ready and batcher is not None and not batcher.is_closing
        restarts = model.num_restarts if model else 0
        return JSONResponse(
            {"ready": is_ready, "model_pid": model and model.pid, "restarts": restarts}, 200 if is_ready else 503
        )

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/settings")
    async def describe() -> dict[str, Any]:
        return service.description()

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE)

    return app
