"""Does a learnt scale and shift of what is injected pay? `python benchmarks/scale_shift.py`

Block Caching (arXiv 2312.03209) adjusts what it reuses by a scale and a shift for every step and channel, so that the cached model gives
what the plain one would give for the same latents, along the cached model's own trajectory. Here the boundary's output is adjusted, each
guidance branch by itself: by least squares on that output, exact, or by descent on the guided prediction that follows from it. Both are
fitted step after step on the latents that the adjusted steps before led to. For that every image has a twin in the batch, which computes
the steps that the image reuses, and is given its latents after each.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from statistics import fmean

import torch
from adjustment import Fit, descent, fitted, least_squares
from evidence import load_data
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from rivals import advantage

from ada.data import load_prompts
from ada.noise import EVALUATION, noise_seed
from ada.progress import progress
from ada.rewards.damage import bounded_damage, visibly_changed
from ada.rollouts import Case

CAPTIONS = "checkpoints/emoji-prompts"


def main(
    training: str = "configs/default.yaml", rungs: Sequence[int] = (5, 8, 12, 14), fit_limit: int = 48, test_limit: int = 64
) -> None:
    """Prints the damage of static schedules with and without an adjustment.

    Args:
        training: file of a configuration of ladder training.
        rungs: of its ladder.
        fit_limit: composed training captions to fit to, one noise each.
        test_limit: composed captions of another split, one noise each.
    """
    data, _ = load_data(training, None)
    data.pipeline.max_rows = None  # the head is given all rows at once: those that reuse join those that compute
    seen, cases = (
        [
            Case(prompt, noise_seed(0, place, use))
            for place, prompt in enumerate(load_prompts(CAPTIONS, split, limit=limit)["prompt"])
        ]
        for split, limit, use in (("composed_train", fit_limit, 0), ("composed_validation", test_limit, EVALUATION))
    )
    ways: dict[str, Fit | None] = {"nothing": None, "least squares": least_squares, "descent": descent}
    prompts, seeds = [case.prompt for case in cases], [case.seed for case in cases]
    reference = data.pipeline.generate(prompts, seeds, data.ladder.schedule(torch.tensor([0]))).images
    table = Table(title=f"Bounded damage on {len(cases)} captions; fitted to {len(seen)} others", title_justify="left")
    for head in ("rung", "saved", "adjusted by", "error removed", "damage", "less by", "of it", "visibly changed"):
        table.add_column(head)
    with progress("Rungs and ways", len(rungs) * len(ways)) as advance:
        for rung in rungs:
            for name, fit in ways.items():
                adjustment = None if fit is None else fitted(data.pipeline, data.ladder, rung, seen, fit)
                with nullcontext() if adjustment is None else adjustment.on():
                    made = data.pipeline.generate(prompts, seeds, data.ladder.schedule(torch.tensor([rung])))
                with torch.inference_mode():
                    distance = -data.collector.reward(made.images, prompts, reference).total.clamp(max=0)
                cost = bounded_damage(distance, data.visible_damage).double()
                gain = ["", "", ""]
                if adjustment is None:
                    plain = cost
                else:
                    less = advantage(plain - cost, torch.arange(len(cost)))
                    gain = [f"{fmean(adjustment.removed):.1%}", less, f"{1 - cost.mean() / plain.mean():.1%}"]
                changed = f"{visibly_changed(distance, data.visible_damage).mean():.1%}"
                saved = f"{made.report.compute_saved.mean():.1%}"
                table.add_row(str(rung), saved, name, gain[0], f"{cost.mean():.4f}", *gain[1:], changed)
                advance(1)
    Console(width=160).print(table)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
