"""How much is there to win by deciding per image? `python benchmarks/oracle.py`

Runs many schedules of every prompt from its shared prefix and compares, at each level of compute, the best static schedule with the
best choice per image: the ceiling of any policy over these schedules. Fidelity to the reference is deterministic, so each image's
frontier is exact; choosing a static schedule on the images that it is measured on is not, so its held-out value is shown beside it.
Prompts that are done are kept: a run that was killed goes on where it was.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor

from ada.backbone import Backbone
from ada.evaluation import default_metrics, find_prompts
from ada.evaluation.frontier import Level, best_steps, measure_level, oracle_errors
from ada.evaluation.measure.metrics import DISTANCE, LATENT, QUALITY
from ada.evaluation.measure.progress import Bar, default_console
from ada.evaluation.measure.store import Store, fingerprint_of
from ada.evaluation.search import INTERVALS, Offer, best_static, default_kinds, offering_policy, run_schedules, sample_schedules
from ada.rollout import Denoiser
from blockdance import blockdance_n

LEVELS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45)
TITLES = {LATENT: "Latent distance", DISTANCE: "Perceptual distance", QUALITY: "Quality lost"}


def main(
    base_model: str = "checkpoints/emoji-dit", scorer: str = "checkpoints/emoji-scorer", prompts: str = "emoji",
    limit: int = 64, schedules: int = 256, num_inference_steps: int = 20, guidance_scale: float = 4.0,
    max_sequence_length: int = 24, most_rows: int = 128, seed: int = 0, output: Path = Path("outputs/oracle"),
) -> None:  # fmt: skip
    """Prints a table and writes oracle.md and oracle.png.

    Args:
        base_model: folder or Hub id of the pipeline.
        scorer: folder or Hub id of the CLIP that measures.
        prompts: a known set, or a folder, file or Hub id.
        limit: number of prompts.
        schedules: how many schedules to run of every prompt.
        num_inference_steps: denoising steps.
        guidance_scale: scale of classifier-free guidance.
        max_sequence_length: tokens that prompts are padded to.
        most_rows: most images to denoise at once; lower it where memory is short.
        seed: of the noise and of the drawing of schedules.
        output: folder to write to.
    """
    backbone = Backbone(base_model, num_inference_steps, guidance_scale, max_sequence_length)
    kinds = default_kinds(len(backbone.cost().blocks))
    policy = offering_policy(backbone, kinds)
    decided = policy.decided_steps(num_inference_steps)
    generator = torch.Generator().manual_seed(seed)
    offer = sample_schedules(kinds, decided, num_inference_steps, schedules, backbone.cost(), generator)
    chosen = find_prompts(prompts, limit=limit)
    settings = {"weights": fingerprint_of(backbone.transformer), "guidance": guidance_scale, "seed": seed, "scorer": scorer}
    store = Store(output, settings | {"actions": offer.actions.tolist(), "kinds": [asdict(kind) for kind in kinds]})
    console = default_console()
    found = run_all(Denoiser(backbone, policy, seed), chosen, offer, scorer, store, most_rows, console)
    errors = {name: found[name] for name in (LATENT, DISTANCE)} | {QUALITY: quality_lost(found[QUALITY])}
    periodic = periodic_places(offer)
    levels = {
        name: [measure_level(values, offer.saved, level, periodic) for level in LEVELS] for name, values in errors.items()
    }
    rows = {name: [level for level in each if level is not None] for name, each in levels.items()}
    print_table(rows, len(chosen), offer, console)
    (output / "oracle.md").write_text(markdown(rows, len(chosen), offer), encoding="utf-8")
    draw(errors, offer, periodic).savefig(output / "oracle.png")
    console.print(f"Wrote oracle.md and oracle.png to {output}.")


def run_all(
    denoiser: Denoiser, prompts: Any, offer: Offer, scorer: str, store: Store, most_rows: int, console: Console
) -> dict[str, Tensor]:
    """By metric, `(prompts, schedules)`; prompts that were done before are read from the store."""
    metrics = {name: metric for name, metric in default_metrics(scorer).items() if name in (QUALITY, DISTANCE)}
    parts: list[dict[str, Tensor]] = []
    with Bar.shown(console) as bar:
        advance = bar.task("Running schedules", len(prompts))
        for prompt, index in zip(prompts["prompt"], prompts["index"], strict=True):
            path = store.parts / f"prompt-{index}.safetensors"
            if not path.is_file():
                values = run_schedules(denoiser, [prompt], [index], offer.actions, metrics, most_rows=most_rows)
                save_file({name: part.contiguous() for name, part in values.items()}, path.with_suffix(".partial"))
                path.with_suffix(".partial").replace(path)
            parts.append(load_file(path))
            advance("")
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def quality_lost(quality: Tensor) -> Tensor:
    """What an image scores below its reference, the first schedule; scoring above it is no gain, but the scorer's taste."""
    return (quality[:, :1] - quality).clamp(min=0)


def periodic_places(offer: Offer) -> Tensor:
    """Places of BlockDance-2, 3 and 4, of every kind."""
    steps = offer.actions.shape[1]
    rows = [
        (blockdance_n(steps, interval, kind).actions[0] * action).tolist()
        for action, kind in enumerate(offer.kinds, 1)
        for interval in INTERVALS
    ]
    listed = offer.actions.tolist()
    return torch.tensor([listed.index(row) for row in rows])


def cells(level: Level, decimals: int) -> list[str]:
    """A level's row: figures, the gap with its interval, and the gap as a share."""
    width = level.gap.half_width or 0.0
    dance = "–" if level.blockdance is None else f"{level.blockdance:.{decimals}f}"
    relative = level.gap.value / level.held_out.value if level.held_out.value else 0.0
    figures = (level.static, level.held_out.value, level.mixed, level.steps, level.oracle.value)
    numbers = [f"{value:.{decimals}f}" for value in figures]
    return [f"{level.saved:.0%}", dance, *numbers, f"{level.gap.value:.{decimals}f} ±{width:.{decimals}f}", f"{relative:.0%}"]


HEADS = (
    "Saved",
    "BlockDance-N",
    "static",
    "static, held out",
    "static, mixed",
    "per image, steps",
    "oracle",
    "gap",
    "of held out",
)


def explain(num_prompts: int, offer: Offer) -> str:
    """What the columns are."""
    return (
        f"Means over {num_prompts} held-out prompts, {len(offer.actions)} schedules of {len(offer.kinds)} kinds; lower is better. "
        "BlockDance-N and static: the best one that saves as much. Held out: chosen on one half of the prompts, measured on the "
        "other. Mixed: two static schedules for random parts of the prompts, the same mean compute. Per image, steps: each image's "
        "best schedule that saves as much. Oracle: the same mean compute, shared among the images as serves them best. Gap: held "
        "out minus oracle, ± half its 95 % bootstrap interval."
    )


def print_table(rows: dict[str, list[Level]], num_prompts: int, offer: Offer, console: Console) -> None:
    """Prints a table per metric."""
    for name, levels in rows.items():
        table = Table(title=TITLES[name], title_justify="left")
        for head in HEADS:
            table.add_column(head, justify="right")
        for level in levels:
            table.add_row(*cells(level, _decimals(name)))
        console.print(table)
    console.print(explain(num_prompts, offer))


def markdown(rows: dict[str, list[Level]], num_prompts: int, offer: Offer) -> str:
    """The same in Markdown."""
    parts = [explain(num_prompts, offer)]
    for name, levels in rows.items():
        lines = [f"| {TITLES[name]}: " + " | ".join(HEADS) + " |", "| " + "---: | " * len(HEADS)]
        lines += ["| " + " | ".join(cells(level, _decimals(name))) + " |" for level in levels]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _decimals(name: str) -> int:
    return 2 if name == QUALITY else 4


def draw(errors: dict[str, Tensor], offer: Offer, periodic: Tensor) -> Figure:
    """A panel per metric: every curve over the compute saved, and each image's own frontier behind them."""
    figure = Figure(figsize=(5.2 * len(errors), 4.8), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    grid = torch.linspace(0.02, float(offer.saved.max()) - 1e-6, 40).tolist()
    for panel, (name, values) in zip(figure.subplots(1, len(errors), squeeze=False)[0], errors.items(), strict=True):
        for image in values:
            panel.plot(
                grid, [float(best_steps(image[None], offer.saved, level)) for level in grid], color="#c8d2da", linewidth=0.6
            )
        static = [float(values[:, best_static(offer.saved, values, level)].mean()) for level in grid]
        panel.plot(grid, static, color="#117733", label="best static schedule", linewidth=2)
        steps = [float(best_steps(values, offer.saved, level).mean()) for level in grid]
        panel.plot(grid, steps, color="#0072B2", label="per image, which steps", linewidth=2)
        oracle = [float(oracle_errors(values, offer.saved, level).mean()) for level in grid]
        panel.plot(grid, oracle, color="#D55E00", label="per image, which and how many (oracle)", linewidth=2.4)
        means = values.mean(0)
        panel.scatter(offer.saved, means, s=5, color="#aaaaaa", zorder=1, label="every schedule, mean over images")
        panel.scatter(offer.saved[periodic], means[periodic], s=26, marker="^", color="#000000", zorder=5, label="BlockDance-N")
        panel.set(xlabel="compute saved", title=TITLES[name])
        panel.set_yscale("symlog", linthresh=float(means[means > 0].quantile(0.05)))
        panel.set_ylim(bottom=0)
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        panel.spines[["top", "right"]].set_visible(False)
    figure.axes[0].plot([], [], color="#c8d2da", label="each image's own frontier")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
