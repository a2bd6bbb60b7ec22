"""The service on the embedded model, over real sockets: one process of the service, one of the model."""

import base64
import html
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from fastapi.responses import FileResponse
from PIL import Image

from examples.serve.app import Limits, Service, create_app
from examples.serve.model import Answer, Job, ModelDiedError, ModelProcess, ModelSettings

ROOT = Path(__file__).parents[2]
STEPS = 12
MODEL = ModelSettings(
    pipeline=str(ROOT / "checkpoints/emoji-dit"), policy=str(ROOT / "checkpoints/ada-emoji"), steps=STEPS, batch_timeout=1400
)
PROMPTS = ["a red apple", "cat face", "dog", "a tiny blue heart"]
WISHES: list[dict[str, float]] = [{"compute": 1.0}, {"mean_compute": 0.6}, {"compute": 0.7}, {}]


class Running:
    """The service in a thread of its own."""

    def __init__(self, linger: float = 1.0) -> None:
        app = self.app = create_app(
            MODEL, Limits(max_batch=4, max_waiting=6, linger=linger, timeout=1500, max_prompt=60, max_body=2000)
        )
        self.service: Service = app.state.service
        listener = socket.create_server(("127.0.0.1", 0))
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]})
        self.thread.start()
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=1500)
        self.threads = ThreadPoolExecutor(32)
        self.client.get("/health")  # answered when the model is loaded

    def make(self, prompt: str, seed: int, **wish: float) -> Future[httpx.Response]:
        return self.threads.submit(self.client.post, "/images", json={"prompt": prompt, "seed": seed} | wish)

    def metric(self, name: str, **labels: str) -> float:
        return self.service.metrics.registry.get_sample_value(name, labels) or 0.0

    def wait_until(self, waiting: int) -> None:
        """Returns when so many requests wait for a batch."""
        for _ in range(12_000):
            if self.metric("blockdance_waiting") == waiting:
                return
            time.sleep(0.01)
        raise TimeoutError(f"{self.metric('blockdance_waiting')} requests wait, not {waiting}")

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join(120)


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with closing(Running()) as running:
        yield running


def pixels(answer: dict[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["image"])))).astype(int)


def test_requests_of_different_budgets_share_a_batch_and_equal_each_alone(running: Running) -> None:
    asked = [running.make(prompt, seed, **wish) for seed, (prompt, wish) in enumerate(zip(PROMPTS, WISHES, strict=True))]
    together = [one.result().json() for one in asked]
    assert [answer["batch_size"] for answer in together] == [4] * 4
    assert sum(together[0]["actions"]) == 0, "its user paid for every step"
    assert together[0]["compute_saved"] == 0
    assert 0.1 < together[2]["compute_saved"] < 0.5, "the rung nearest to 0.7"
    for seed, (prompt, wish, answer) in enumerate(zip(PROMPTS, WISHES, together, strict=True)):
        alone = running.make(prompt, seed, **wish).result().json()
        assert (alone["batch_size"], alone["actions"]) == (1, answer["actions"])
        assert np.abs(pixels(alone) - pixels(answer)).max() <= 1, "rounding to 8 bits may tip"
    assert pixels(together[0]).std() > 10, "an image, not a plain square"


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ({}, 422, "prompt: Field required"),
        ({"prompt": ""}, 422, "prompt: String should have at least 1 character"),
        ({"prompt": "x" * 61}, 422, "`prompt` has 61 characters; at most 60 are taken"),
        ({"prompt": "dog", "seed": -1}, 422, "seed: Input should be greater than or equal to 0"),
        ({"prompt": "dog", "steps": 50}, 422, "steps: Extra inputs are not permitted"),
        ({"prompt": "dog", "compute": 0.8, "quality": 0.1}, 422, "Give one wish; got compute, quality."),
        ({"prompt": "dog", "compute": 0.1}, 422, "`compute` must lie between"),
        ({"prompt": "dog", "mean_compute": 3}, 422, "`mean_compute` must lie between"),
        ({"prompt": "dog", "compute": "much"}, 422, "compute: Input should be a valid number"),
        ({"prompt": "dog", "compute": True}, 422, "compute: Input should be a valid number"),
        ({"prompt": "  "}, 422, "prompt: String should have at least 1 character"),
        ({"prompt": "x" * 3000}, 413, "more than 2000 bytes"),
    ],
)
def test_bad_input_is_refused_with_a_reason(running: Running, body: dict[str, Any], status: int, reason: str) -> None:
    reply = running.client.post("/images", json=body)
    assert reply.status_code == status
    assert reason in reply.json()["detail"]


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b'{"prompt": "\\ud800"}', b'{"prompt": "dog", "compute": NaN}', b"\xff\xfe"], ids=repr
)
def test_what_is_no_request_is_refused(running: Running, content: bytes) -> None:
    reply = running.client.post("/images", content=content, headers={"Content-Type": "application/json"})
    assert (reply.status_code, type(reply.json()["detail"])) == (422, str)


def test_a_body_that_does_not_say_its_length_is_cut_off(running: Running) -> None:
    before = running.metric("blockdance_requests_total", outcome="refused")
    reply = running.client.post("/images", content=(b"x" * 100 for _ in range(60)))
    assert reply.status_code == 413
    assert running.metric("blockdance_requests_total", outcome="refused") == before + 1


def test_a_full_queue_says_so_and_serves_those_that_wait(running: Running) -> None:
    before = running.metric("blockdance_requests_total", outcome="full")
    replies = [one.result() for one in [running.make("dog", seed, compute=0.7) for seed in range(20)]]
    statuses = [reply.status_code for reply in replies]
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 6, "those that wait"
    full = next(reply for reply in replies if reply.status_code == 429)
    assert "6 requests are waiting already" in full.json()["detail"]
    assert int(full.headers["Retry-After"]) >= 1
    assert running.metric("blockdance_requests_total", outcome="full") - before == statuses.count(429)


def test_a_request_that_takes_too_long_is_told(running: Running) -> None:
    limits, running.service.limits = running.service.limits, replace(running.service.limits, timeout=0.05)
    try:
        reply = running.make("dog", 1).result()
    finally:
        running.service.limits = limits
    assert reply.status_code == 504
    assert "No image within 0.05 s" in reply.json()["detail"]


def test_a_client_that_leaves_gives_up_its_place(running: Running) -> None:
    busy = running.make("dog", 1, compute=1.0)
    left = running.metric("blockdance_requests_total", outcome="left")
    with pytest.raises(httpx.ReadTimeout):
        running.client.post("/images", json={"prompt": "cat"}, timeout=httpx.Timeout(60, read=0.01))
    for _ in range(1000):
        if running.metric("blockdance_requests_total", outcome="left") == left + 1:
            break
        time.sleep(0.05)
    assert running.metric("blockdance_requests_total", outcome="left") == left + 1
    assert busy.result().status_code == 200


def test_metrics_count_what_happened(running: Running) -> None:
    answered = running.metric("blockdance_requests_total", outcome="answered")
    saved = running.metric("blockdance_compute_saved_sum")
    answer = running.make("dog", 1, compute=0.7).result().json()
    assert running.metric("blockdance_requests_total", outcome="answered") == answered + 1
    assert running.metric("blockdance_compute_saved_sum") - saved == pytest.approx(answer["compute_saved"], abs=1e-4)
    text = running.client.get("/metrics").text
    for name in ("waiting", "batch_size_bucket", "latency_seconds_count", "model_restarts"):
        assert f"blockdance_{name}" in text


def test_the_page_and_what_it_asks_for(running: Running) -> None:
    page = running.client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert 'fetch("settings")' in page.text
    settings = running.client.get("/settings").json()
    assert settings["steps"] == STEPS
    for end in settings["mean_compute"]:
        running.service.policy.with_options(mean_compute=end)  # type: ignore[union-attr]


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine to look at the page with")
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_in_a_browser(running: Running, width: int, tmp_path: Path) -> None:
    """A page in a frame of this width: moves the slider, makes an image, is refused one."""
    running.app.add_api_route("/driver", lambda: FileResponse(ROOT / "tests/integration/page_driver.html"))
    # time in the page stands still while it waits for an answer
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    command += ["--virtual-time-budget=100000", "--dump-dom", f"{running.client.base_url}/driver?width={width}"]
    page = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=True).stdout
    written = re.search(r'<pre id="seen">(.*?)</pre>', page, re.DOTALL)
    assert written is not None, page
    seen = json.loads(html.unescape(written[1]))
    assert "broken" not in seen, seen["broken"]
    answer = running.make("cat face", 3, mean_compute=0.7).result().json()
    reused = sum(action > 0 for action in answer["actions"])
    assert reused > 0
    assert seen["share"] == "70 %"
    assert seen["waits"] == [True, "Making it …"]
    assert seen["image"] == [64, "cat face"]
    assert seen["steps"] == ["reused" if action else "" for action in answer["actions"]]
    assert seen["summary"].startswith(f"{reused} of {STEPS} steps reused, ")
    assert "Seed 3; made alone in " in seen["summary"]
    assert seen["error"] == "`prompt` has 70 characters; at most 60 are taken."
    assert seen["beyond"] == 0, "nothing sticks out to the right"


def test_a_killed_model_begins_anew_and_no_request_is_lost(running: Running) -> None:
    asked = [running.make(prompt, seed, compute=0.7) for seed, prompt in enumerate(PROMPTS)]
    running.wait_until(waiting=4)
    running.wait_until(waiting=0)  # they run
    pid = running.client.get("/health").json()["model_pid"]
    os.kill(pid, signal.SIGKILL)
    replies = [one.result() for one in asked]
    assert [reply.status_code for reply in replies] == [200] * 4
    health = running.client.get("/health")
    assert (health.status_code, health.json()["restarts"]) == (200, 1)
    assert health.json()["model_pid"] != pid
    again = running.make(PROMPTS[0], 0, compute=0.7).result().json()
    assert np.abs(pixels(again) - pixels(replies[0].json())).max() <= 1


def test_a_model_that_dies_while_nobody_asks_begins_anew(running: Running) -> None:
    """A load balancer sends nothing to a service that is not ready, so no request would ever bring it back."""
    before = running.client.get("/health").json()
    os.kill(before["model_pid"], signal.SIGKILL)
    deadline = time.monotonic() + 300
    while (now := running.client.get("/health")).status_code == 503 or now.json()["restarts"] == before["restarts"]:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert now.json()["model_pid"] != before["model_pid"]
    assert running.make(PROMPTS[0], 0).result().status_code == 200


def test_a_shutdown_answers_what_was_taken() -> None:
    """Of a service of its own, which lingers until all six requests have come."""
    with closing(Running(linger=5.0)) as running:
        asked = [running.make("dog", seed, compute=0.7) for seed in range(6)]
        running.wait_until(waiting=6)
        running.server.should_exit = True
        assert [one.result().status_code for one in asked] == [200] * 6
        running.thread.join(300)
        assert not running.thread.is_alive()
        assert running.service.model is not None
        assert not running.service.model.is_alive
        with pytest.raises(httpx.ConnectError):
            running.client.get("/health")


def address_in(log: Path, process: "subprocess.Popen[bytes]") -> str:
    """Where the service says that it listens."""
    while True:
        said = re.search(r"Uvicorn running on (http://127\.0\.0\.1:\d+)", log.read_text())
        if said is not None:
            return said[1]
        assert process.poll() is None, log.read_text()
        time.sleep(0.2)


def is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.slow
def test_the_command_answers_what_it_took_before_it_ends(tmp_path: Path) -> None:
    """`python -m examples.serve`, and SIGTERM while one image is made and three wait."""
    command = [sys.executable, "-m", "examples.serve", "--port", "0", "--model.steps", "50"]  # a port that the system chooses
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--limits.max_batch", "1", "--limits.timeout", "600"], cwd=ROOT, stdout=log, stderr=log
        )
    try:
        with httpx.Client(base_url=address_in(tmp_path / "log", process), timeout=600) as client:
            while not is_ready(client):
                assert process.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.2)
            with ThreadPoolExecutor(4) as threads:
                body = {"prompt": "dog", "seed": 1, "compute": 0.7}
                asked = [threads.submit(client.post, "/images", json=body) for _ in range(4)]
                while "blockdance_waiting 3.0" not in client.get("/metrics").text:
                    assert not any(one.done() for one in asked), [one.result().text[:200] for one in asked if one.done()]
                    time.sleep(0.02)
                process.terminate()
                images = [one.result().raise_for_status().json()["image"] for one in asked]
        assert len(set(images)) == 1, "the same request four times"
        assert process.wait(60) == -signal.SIGTERM, "the signal's own end, after a clean shutdown"
        assert "Application shutdown complete" in (tmp_path / "log").read_text()
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_job_that_kills_the_model_fails_alone() -> None:
    """A seed that is no number ends the process: its neighbour is served, and the model lives on."""
    model = ModelProcess(MODEL)
    try:
        poison = Job("cat", None)  # type: ignore[arg-type]
        good, bad = model([Job("dog", 1), poison])
        assert isinstance(good, Answer)
        assert isinstance(bad, ModelDiedError)
        assert model.num_restarts == 3, "over the batch, and twice over the job alone"
        assert isinstance(model([Job("dog", 1)])[0], Answer)
    finally:
        model.close()
