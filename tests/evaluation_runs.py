"""Small evaluations: a random pipeline, methods, and what becomes of them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from conftest import NUM_BLOCKS, build_clip_folder, build_pixart_pipeline

from ada.evaluation.measure.collect import collect_results
from ada.evaluation.measure.metrics import Embedding, default_metrics
from ada.evaluation.measure.results import MethodResult
from ada.evaluation.measure.run import Plan, measure_methods
from ada.evaluation.measure.store import Store
from ada.evaluation.methods.base import Cases, Method, Run, unchanged
from ada.evaluation.methods.static import full_method
from ada.rollouts import FrozenPipeline
from blockdance import Reuse, ReuseSchedule

ARGUMENTS = {"guidance_scale": 2.0, "max_sequence_length": 8, "use_resolution_binning": False, "clean_caption": False}
STEPS = 6
CASES = Cases(["a", "b c", "d", "e f", "g"], [11, 12, 13, 14, 15], 2)
WORSE = ReuseSchedule(torch.tensor([[0] + [1] * (STEPS - 1)]), (Reuse(boundary=NUM_BLOCKS - 1),))
"""Everything from the second step on reuses the first step's last block."""


def build_backbone(folder: Path) -> FrozenPipeline:
    """A small random pipeline, saved and loaded."""
    build_pixart_pipeline().save_pretrained(folder / "pipeline")
    return FrozenPipeline(str(folder / "pipeline"), STEPS, ARGUMENTS)


def method(name: str, plan: Any = None, steps: int = STEPS, **options: Any) -> Method:
    return Method(name=name, family=name, group="static", num_inference_steps=steps, plan=plan, **options)


def plan_of(
    backbone: FrozenPipeline, folder: Path, methods: Sequence[Method], cases: Cases = CASES, kept: Sequence[int] = ()
) -> Plan:
    scorer = str(build_clip_folder(folder / "scorer"))
    store = Store(folder / "out", {"cases": len(cases.prompts)})
    return Plan(
        backbone,
        [full_method(STEPS), *methods],
        cases,
        default_metrics(scorer),
        Embedding(scorer),
        store,
        frozenset(kept),
    )


def run(backbone: FrozenPipeline, folder: Path, *methods: Method, cases: Cases = CASES) -> list[MethodResult]:
    plan = plan_of(backbone, folder, methods, cases)
    return collect_results(plan.store, plan.methods, measure_methods(plan), {}, cases)


def noting(name: str, calls: list[tuple[str, int]], stop_at: int | None = None) -> Method:
    """A method that notes its calls, and is killed at one of them."""

    @contextmanager
    def accelerate(pipeline: Any, images: slice) -> Iterator[Run]:
        calls.append((name, images.start))
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        with unchanged(pipeline, images) as started:
            yield started

    return method(name, attach=accelerate)
