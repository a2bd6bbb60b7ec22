"""`python -m blockdance inspect` and `python -m blockdance calibrate`."""

import argparse
import sys
import warnings
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from blockdance import (
    BlockDanceConfig,
    OutcomeSearch,
    ReuseSchedule,
    apply_blockdance,
    find_layout,
    measure_feature_change,
    save_plan,
)
from blockdance.command_line import BY, command_parser
from blockdance.errors import BlockDanceError
from blockdance.layouts import block_list, block_stack
from blockdance.outcome import DEFAULT_DAMAGE, frontier
from blockdance.similarity import DEFAULT_TOLERANCE, FeatureChange
from blockdance.targets import transformers_of


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns the exit status."""
    options = command_parser({"inspect": inspect, "calibrate": calibrate}).parse_args(arguments)
    try:
        options.command(options)
    except (BlockDanceError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def inspect(options: argparse.Namespace) -> None:
    """Prints which layout was found, what would be skipped, and MACs."""
    pipeline = _load(options)
    transformers = transformers_of(pipeline, options.component)
    # any plan that fits every number of timesteps, of which some schedulers have more than steps (Heun): a call's cost is the same
    with (
        apply_blockdance(pipeline, BlockDanceConfig(boundary=0), component=options.component) as handle,
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "BlockDance saved nothing")
        pipeline(options.prompts, num_inference_steps=options.steps, **options.option)
        costs = {name: handle.cost(name) for name in transformers}
    for name, transformer in transformers.items():
        layout, cost = find_layout(transformer), costs[name]
        print(f"{type(pipeline).__name__}.{name}, {type(transformer).__name__}")
        first = 0
        for path in layout.lists:
            count = len(block_list(transformer, path))
            numbers = f"blocks {first} to {first + count - 1}" if not layout.interleaved else "interleaved"
            print(f"  {path}: {count} {type(block_list(transformer, path)[0]).__name__}, {numbers}")
            first += count
        if layout.note:
            print(f"  {layout.note}")
        kind = BlockDanceConfig().kind(len(block_stack(transformer, layout)))
        skipped = sum(cost.blocks[: kind.boundary + 1])
        print(f"  a forward call: {cost.total / 1e9:.3g} GMACs, {sum(cost.blocks) / cost.total:.1%} of them in the blocks")
        print(f"  a reuse step {kind}: skips blocks 0 to {kind.boundary}, {skipped / cost.total:.1%} of the MACs")


def calibrate(options: argparse.Namespace) -> None:
    """Chooses a plan by measurement and saves it."""
    for by, names in BY.items():
        ignored = [f"--{name.replace('_', '-')}" for name in names if getattr(options, name) is not None]
        if by != options.by and ignored:
            raise BlockDanceError(f"`--by {options.by}` takes no {', '.join(ignored)}: leave it out, or give `--by {by}`.")
    for path in (options.output, options.figure):
        if path is not None:
            _refuse_unwritable(path)
    pipeline = _load(options)
    (_calibrate_by_outcome if options.by == "outcome" else _calibrate_by_features)(pipeline, options)


def _calibrate_by_features(pipeline: Any, options: argparse.Namespace) -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(options.prompts))]
    change = measure_feature_change(
        pipeline,
        options.prompts,
        component=options.component,
        num_inference_steps=options.steps,
        generator=generators,
        **options.option,
    )
    plan: BlockDanceConfig | ReuseSchedule
    if options.block_caching is not None:
        plan = schedule = change.block_caching(options.block_caching)
    else:
        plan = change.propose(DEFAULT_TOLERANCE if options.tolerance is None else options.tolerance)
        schedule = plan.schedule(change.num_steps, change.cosine.shape[2])
    print(_description(plan, schedule, change))
    _save(plan, pipeline, options)
    if options.figure is not None:
        from blockdance.figures import change_figure  # matplotlib is needed for this option alone

        change_figure(change, schedule).savefig(options.figure, dpi=150)
        print(f"figure: {options.figure}")


def _calibrate_by_outcome(pipeline: Any, options: argparse.Namespace) -> None:
    search = OutcomeSearch(
        pipeline,
        options.prompts,
        component=options.component,
        num_inference_steps=options.steps,
        seeds=options.seeds or 1,
        batch_size=options.batch_size or 16,
        report=print,
        **options.option,
    )
    pipeline.set_progress_bar_config(disable=True)
    chosen = search.run(DEFAULT_DAMAGE if options.tolerance is None else options.tolerance, options.most or 100)
    print("What saves most at its damage (distance of the final latents, relative; mean over images, and the worst):")
    for outcome in frontier(search.outcomes):
        print(f"{'*' if outcome is chosen else ' '} {outcome}")
    _save(chosen.config, pipeline, options)


def _save(plan: BlockDanceConfig | ReuseSchedule, pipeline: Any, options: argparse.Namespace) -> None:
    transformer = next(iter(transformers_of(pipeline, options.component).values()))
    save_plan(plan, options.output, transformer)
    named = "" if options.component is None else f", component={options.component!r}"
    print(f"saved: {options.output}; use it with apply_blockdance(pipe, {str(options.output)!r}{named})")


def _description(plan: BlockDanceConfig | ReuseSchedule, schedule: ReuseSchedule, change: FeatureChange) -> str:
    if isinstance(plan, BlockDanceConfig):
        start, end = plan.reuse_range
        what = f"BlockDance-{plan.interval} after block {plan.boundary}, between {start:.0%} and {end:.0%} of the steps"
    else:
        what = f"Block Caching with {len(plan.kinds)} different sets of reused blocks over {plan.num_steps} steps"
    return f"{what}: saves {change.saved(schedule):.1%} of the denoising MACs"


def _refuse_unwritable(path: Path) -> None:
    """Finds out before the work whether what comes of it can be written.

    Raises:
        BlockDanceError: it cannot.
    """
    is_new = not path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as error:
        raise BlockDanceError(
            f"{path} cannot be written ({error.strerror}). Name a file, in a folder that you may write to."
        ) from error
    if is_new:
        path.unlink()


def _load(options: argparse.Namespace) -> Any:
    folder = Path(options.model)
    if folder.exists() and not (folder / "model_index.json").is_file():
        raise FileNotFoundError(f"There is no diffusers pipeline in {folder}: it has no model_index.json.")
    try:
        torch.empty(0, device=options.device)
    except (RuntimeError, AssertionError) as error:  # it depends on the device which of them
        raise BlockDanceError(
            f"torch cannot use the device {options.device} here. Give --device cpu, or another one."
        ) from error
    try:
        pipeline = DiffusionPipeline.from_pretrained(options.model, dtype=getattr(torch, options.dtype)).to(options.device)
    except (OSError, ValueError) as error:
        raise BlockDanceError(
            f"No diffusers pipeline could be loaded from {options.model}. Give the folder of one, or the Hub id of one that can be "
            f"downloaded, or was before. What went wrong: {str(error).partition(chr(10))[0]}"
        ) from error
    if options.prompt_file is not None:
        if not options.prompt_file.is_file():
            raise FileNotFoundError(
                f"There is no prompt file {options.prompt_file}: give a text file with one prompt per line."
            )
        options.prompts = [line.strip() for line in options.prompt_file.read_text().splitlines() if line.strip()]
        if not options.prompts:
            raise BlockDanceError(
                f"There is no prompt in {options.prompt_file}: it must have one on each line that is not blank."
            )
    asked = signature(type(pipeline).__call__).parameters
    if "class_labels" in asked and "prompt" not in asked:
        options.prompts = _labels(options.prompts)
    return pipeline


def _labels(prompts: Sequence[str]) -> list[int]:
    """What a pipeline of class labels is given for prompts.

    Raises:
        BlockDanceError: they are no numbers.
    """
    try:
        return [int(prompt) for prompt in prompts]
    except ValueError as error:
        raise BlockDanceError(
            f"This pipeline makes images of class labels, and {error}. Give numbers as prompts: `--prompts 207 360`."
        ) from error


if __name__ == "__main__":
    sys.exit(main())
