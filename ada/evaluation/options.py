"""The options of `python evaluate.py`, and the prompt sets that they name."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset

from ada.data import load_prompts
from ada.evaluation.compare import evaluate
from ada.evaluation.measure import PUBLISHED, Column, Embedding, Metric, Results, default_metrics
from ada.evaluation.request import Request, Settings
from ada.policy import AdaPolicy
from ada.rewards import Reward
from ada.rollouts import FrozenPipeline
from ada.rollouts.pipeline import Dtype
from ada.schedules import Ladder

SEARCH_PROMPTS, QUICK_SEARCH_PROMPTS = 12, 4


class PromptSet(NamedTuple):
    """Hub id or folder of a known set, its split, and the column that holds the prompt."""

    source: str
    split: str
    column: str


PROMPT_SETS = {
    # 128 held-out captions of the embedded model
    "emoji": PromptSet("checkpoints/emoji-prompts", "test", "prompt"),
    # PartiPrompts, 1632 prompts (Yu et al., 2022)
    "parti": PromptSet("nateraw/parti-prompts", "train", "Prompt"),
    # DrawBench, 200 prompts (Saharia et al., 2022)
    "drawbench": PromptSet("sayakpaul/drawbench", "train", "Prompts"),
    # 30 000 captions of COCO 2014's validation images
    "coco": PromptSet("sayakpaul/coco-30-val-2014", "train", "caption"),
}
COLUMNS = ("prompt", "Prompt", "Prompts", "prompts", "caption", "text")
"""Tried in this order for a set that has no name here."""


def find_prompts(source: str, split: str | None = None, column: str | None = None, limit: int | None = None) -> Dataset:
    """Loads prompts with the columns `prompt` and `index`.

    Args:
        source: a name of `PROMPT_SETS`; or a folder, a file or the Hub id of a data set, as in `ada.data.load_prompts`.
        split: of the data set; by default a named set's own, else `test`.
        column: that holds the prompt; by default a named set's own, else the usual names are tried.
        limit: take only so many, spread evenly.

    Raises:
        FileNotFoundError: `source` looks like a path that is not there.
        ValueError: no such column.
    """
    known = PROMPT_SETS.get(source)
    if known is not None and not Path(source).exists():
        return load_prompts(known.source, split or known.split, column or known.column, limit)
    candidates = [column] if column else list(COLUMNS)
    for name in candidates:
        try:
            return load_prompts(source, split or "test", name, limit)
        except ValueError as error:
            if "has no column" not in str(error) or name == candidates[-1]:
                raise
    raise AssertionError("unreachable: the last candidate returns or raises")


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions(Settings):
    """Compares a trained policy with everything that one might pick instead.

    Prints a table over held-out prompts and writes results.json, table.md, Pareto plots, schedules, an image grid, TensorBoard
    events and the page index.html. A run that was killed goes on where it was when the same command is given again.
    """

    policy: str
    """Folder or Hub id of the policy."""
    base_model: str = "checkpoints/emoji-dit"
    """Folder or Hub id of the diffusers pipeline that it was trained on."""
    scorer: str = "checkpoints/emoji-scorer"
    """Folder or Hub id of the CLIP that measures quality and perceptual distance."""
    rewards: dict[str, Reward] | None = None
    """Further rewards to measure quality by: names, each with a class_path, as in a training configuration."""
    prompts: str = "emoji"
    """A known set (emoji, parti, drawbench, coco), or a folder, file or Hub id of prompts."""
    split: str | None = None
    """Their split; by default that of the known set, else test."""
    column: str | None = None
    """The column that holds the prompt, where it has an unusual name."""
    limit: int = 128
    """Number of prompts, spread evenly over the split; fewer than 128 are a quick look of a few minutes."""
    search_prompts: str | None = "checkpoints/emoji-prompts"
    """Other prompts, to calibrate BlockDance and peers on; none leaves them out."""
    search_split: str = "validation"
    """Their split."""
    search_limit: int | None = None
    """Number of them; by default 12, in a quick look 4."""
    ladder: str | None = "configs/ladders/emoji.json"
    """File of searched static schedules, each of which is a row; none leaves them out."""
    num_inference_steps: int = 20
    """Denoising steps of full compute."""
    arguments: dict[str, Any] = field(
        default_factory=lambda: {
            "guidance_scale": 4.0, "max_sequence_length": 24, "use_resolution_binning": False, "clean_caption": False
        }
    )  # fmt: skip
    """Further arguments of the pipeline's call, as in the training configuration."""
    dtype: Dtype = "float32"
    """Precision of the pipeline."""
    rivals: dict[str, str] = field(default_factory=dict)
    """Other policies to compare with: names, each with a folder or Hub id."""
    device: str = "auto"
    """Such as cpu or cuda; auto takes the accelerator where there is one."""


def run_options(options: EvaluationOptions) -> Results:
    """Loads everything that the options name, and evaluates.

    Raises:
        FileNotFoundError: a folder that is not there.
        EvaluationError, BlockDanceError: a policy or settings that do not fit the model.
        ValueError: prompts without the column.
    """
    device = str(torch.accelerator.current_accelerator() or "cpu") if options.device == "auto" else options.device
    policy = AdaPolicy.from_pretrained(options.policy)
    prompts = find_prompts(options.prompts, options.split, options.column, options.limit)
    few = QUICK_SEARCH_PROMPTS if len(prompts) < PUBLISHED else SEARCH_PROMPTS
    others = (
        find_prompts(options.search_prompts, options.search_split, None, options.search_limit or few)
        if options.search_prompts
        else {"prompt": (), "index": ()}
    )
    frozen = FrozenPipeline(options.base_model, options.num_inference_steps, options.arguments, dtype=options.dtype).to(device)
    metrics = default_metrics(options.scorer, device)
    for name, reward in (options.rewards or {}).items():
        metrics[name] = Metric(reward.to(device), Column(name.replace("_", " ").capitalize()))
    request = Request(
        **{known.name: getattr(options, known.name) for known in fields(Settings)},
        prompts=list(prompts["prompt"]),
        indices=list(prompts["index"]),
        metrics=metrics,
        embed=Embedding(options.scorer),
        search_prompts=list(others["prompt"]),
        search_indices=list(others["index"]),
        ladder=Ladder.load(options.ladder) if options.ladder else None,
        rivals={name: AdaPolicy.from_pretrained(source) for name, source in options.rivals.items()},
        sources={name: getattr(options, name) for name in ("policy", "base_model", "scorer", "prompts")},
        settings={"split": options.split},
    )
    return evaluate(frozen, policy, request)
