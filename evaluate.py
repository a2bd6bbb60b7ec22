"""Compares a trained policy with every alternative: `python evaluate.py --policy checkpoints/ada-emoji`."""

import re
import sys
from pathlib import Path

import torch
from jsonargparse import auto_cli

from ada.backbone import Backbone, Dtype
from ada.data import load_prompts
from ada.evaluation import EvaluationError, default_metrics, evaluate, load_policy
from blockdance import BlockDanceError


def main(
    policy: str, base_model: str = "checkpoints/emoji-dit", scorer: str = "checkpoints/emoji-scorer",
    prompts: str = "checkpoints/emoji-prompts", split: str = "test", limit: int = 64, num_inference_steps: int = 20,
    guidance_scale: float = 4.0, max_sequence_length: int = 24, dtype: Dtype = "float32", batch_size: int = 8, seed: int = 0,
    quality_weights: list[float] | None = None, output: Path = Path("outputs/evaluation"), device: str = "auto",
) -> None:  # fmt: skip
    """Prints a table over held-out prompts and writes results.json, table.md, two Pareto plots and an image grid.

    Args:
        policy: folder or Hub id of the policy.
        base_model: folder or Hub id of the diffusers pipeline that it was trained on.
        scorer: folder or Hub id of the CLIP that measures quality and perceptual distance.
        prompts: folder, file or Hub id of the prompts.
        split: their split.
        limit: number of prompts, spread evenly over the split.
        num_inference_steps: denoising steps of full compute.
        guidance_scale: scale of classifier-free guidance.
        max_sequence_length: tokens that prompts are padded to.
        dtype: precision of the pipeline.
        batch_size: images per call of the pipeline.
        seed: seed of the noise and of the random schedules.
        quality_weights: λ at which the policy runs; by default three, log-spaced over its range.
        output: folder to write to.
        device: such as cpu or cuda; auto takes the accelerator where there is one.
    """
    try:
        device = str(torch.accelerator.current_accelerator() or "cpu") if device == "auto" else device
        dataset = load_prompts(prompts, split, limit=limit)
        evaluate(
            policy=load_policy(policy), metrics=default_metrics(scorer, device),
            backbone=Backbone(base_model, num_inference_steps, guidance_scale, max_sequence_length, dtype).to(device),
            prompts=list(dataset["prompt"]), indices=list(dataset["index"]), output=output, quality_weights=quality_weights,
            batch_size=batch_size, seed=seed, settings={"split": split},
            sources={"policy": policy, "base_model": base_model, "scorer": scorer, "prompts": prompts},
        )  # fmt: skip
    except (OSError, EvaluationError, BlockDanceError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    # --batch-size is understood as well as --batch_size
    words = [re.sub("^--[^=]+", lambda option: "--" + option[0][2:].replace("-", "_"), word) for word in sys.argv[1:]]
    auto_cli(main, args=words, as_positional=False, allow_abbrev=False)
