"""`python -m examples.serve.load_test`: the same requests to the service with reuse, without, and one at a time, on loopback; then to the
first once more, whose model is killed meanwhile."""

import asyncio
import base64
import io
import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from jsonargparse import auto_cli
from PIL import Image

TOGETHER, PLAIN, ALONE = "reuse, batches", "every step computed, batches", "reuse, one at a time"
Answers = list[dict[str, Any]]
BUDGETS = (0.6, 0.75, 0.9)
"""Of the users, in turn: the share of the compute that they spend on average."""


def load_test(requests: int = 32, users: int = 8, steps: int = 20, rounds: int = 2) -> None:
    """Prints a table: throughput, latency, what was saved; then how far answers differ from the same requests alone, and what became of
    them when the model's process was killed in their middle.

    On a machine that others use, read the processor time of the model's process: it does not count what they take.

    Args:
        requests: in each round, to each service.
        users: that ask at once; each waits for its image and asks again.
        steps: denoising steps.
        rounds: of all services in turn; the median counts.
    """
    services = {
        TOGETHER: ["--limits.max_batch", str(users)],
        PLAIN: ["--limits.max_batch", str(users), "--model.policy", "null"],
        ALONE: ["--limits.max_batch", "1"],
    }
    lines = Path("checkpoints/emoji-prompts/test.jsonl").read_text(encoding="utf-8").splitlines()
    prompts = [json.loads(line)["prompt"] for line in islice(cycle(lines), requests)]
    bodies = [{"prompt": prompt, "seed": seed, "mean_compute": BUDGETS[seed % 3]} for seed, prompt in enumerate(prompts)]
    seconds: dict[str, list[float]] = {name: [] for name in services}
    processor: dict[str, list[float]] = {name: [] for name in services}
    answers: dict[str, Answers] = {}
    with ExitStack() as stack:
        started = {name: stack.push(_Service(options, steps)) for name, options in services.items()}
        addresses = {name: service.address() for name, service in started.items()}
        for _ in range(rounds):
            for name, address in addresses.items():
                model = psutil.Process(_health(address)["model_pid"])
                start, spent = time.perf_counter(), sum(model.cpu_times()[:2])
                answers[name] = asyncio.run(_ask_all(address, bodies, users, takes_wishes=name != PLAIN))
                seconds[name].append(time.perf_counter() - start)
                processor[name].append(sum(model.cpu_times()[:2]) - spent)
        halfway = statistics.median(seconds[TOGETHER]) / 2
        survived = asyncio.run(_ask_and_kill(addresses[TOGETHER], bodies, users, halfway))
        restarts = _health(addresses[TOGETHER])["restarts"]
    print(_table(seconds, processor, answers, requests))
    print(f"\nAnswers in batches against the same alone: {_compared(answers[TOGETHER], answers[ALONE])}.")
    print(
        f"The model's process killed after {halfway:.0f} s of the same requests, in batches: {len(survived)} of {requests} answered, "
        f"{restarts} restart; against the same alone: {_compared(survived, answers[ALONE])}."
    )


def _compared(answers: Answers, alone: Answers) -> str:
    """How far answers are from the same requests' alone."""
    apart = [int(np.abs(_pixels(one) - _pixels(other)).max()) for one, other in zip(answers, alone, strict=True)]
    decided = sum(one["actions"] == other["actions"] for one, other in zip(answers, alone, strict=True))
    return f"{apart.count(0)} of {len(apart)} bit-equal, the others at most {max(apart)} of 255 apart; decisions equal in {decided}"


class _Service:
    """One service in a process of its own; ends when it is left."""

    def __init__(self, options: list[str], steps: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        command = [sys.executable, "-m", "examples.serve", "--port", str(self._port), "--model.steps", str(steps)]
        command += [*options, "--limits.timeout", "600"]
        self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def __enter__(self) -> "_Service":
        return self

    def address(self) -> str:
        """Its address, when it is ready."""
        address = f"http://127.0.0.1:{self._port}"
        while True:
            try:
                httpx.get(f"{address}/health").raise_for_status()
                break
            except httpx.TransportError:
                if self._process.poll() is not None:
                    raise RuntimeError("The service did not start; run `python -m examples.serve` to see why.") from None
                time.sleep(0.5)
        # counts MACs and fills caches
        httpx.post(f"{address}/images", json={"prompt": "warm"}, timeout=600).raise_for_status()
        return address

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        self._process.wait()


def _health(address: str) -> dict[str, Any]:
    return dict(httpx.get(f"{address}/health", timeout=60).json())


async def _ask_and_kill(address: str, bodies: list[dict[str, Any]], users: int, seconds: float) -> Answers:
    """All answers, although the model's process is killed after so many seconds; raises where one is lost."""
    model = psutil.Process(_health(address)["model_pid"])
    asking = asyncio.create_task(_ask_all(address, bodies, users, takes_wishes=True))
    await asyncio.sleep(seconds)
    model.kill()
    return await asking


async def _ask_all(address: str, bodies: list[dict[str, Any]], users: int, takes_wishes: bool) -> Answers:
    """All answers, in the order of the requests; `users` ask at once."""
    turns = asyncio.Semaphore(users)

    async def ask(client: httpx.AsyncClient, body: dict[str, Any]) -> dict[str, Any]:
        async with turns:
            reply = await client.post("/images", json=body if takes_wishes else body | {"mean_compute": None})
        reply.raise_for_status()
        return dict(reply.json())

    async with httpx.AsyncClient(base_url=address, timeout=600, limits=httpx.Limits(max_connections=users)) as client:
        return await asyncio.gather(*(ask(client, body) for body in bodies))


def _table(
    seconds: Mapping[str, list[float]], processor: Mapping[str, list[float]], answers: Mapping[str, Answers], requests: int
) -> str:
    rows = [
        "| service | images a second | processor time an image | median latency | 95 % of them under | mean batch | compute saved |"
    ]
    rows.append("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, made in answers.items():
        latencies = np.array([answer["seconds"] for answer in made])
        batch = statistics.mean(answer["batch_size"] for answer in made)
        saved = statistics.mean(answer["compute_saved"] for answer in made)
        speed, cost = requests / statistics.median(seconds[name]), statistics.median(processor[name]) / requests
        rows.append(
            f"| {name} | {speed:.2f} | {cost:.2f} s | {np.median(latencies):.1f} s | {np.quantile(latencies, 0.95):.1f} s | "
            f"{batch:.1f} | {saved:.1%} |"
        )
    return "\n".join(rows)


def _pixels(answer: dict[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["image"])))).astype(int)


if __name__ == "__main__":
    auto_cli(load_test, as_positional=False, allow_abbrev=False)
