"""What a policy costs itself: MACs of its decisions at full size, and seconds on the embedded model.

    python benchmarks/policy_overhead.py                 both; by time at full size too where there is a GPU
    python benchmarks/policy_overhead.py --repeats 0     the MACs alone

Full size is PixArt-α at 1024 pixels with guidance, 20 steps. MACs are those of matrix products, as torch counts them; what a policy
reads beside them (means and norms of the features) is in the seconds. On the embedded model, the policy's generation is set beside one
that carries out the same actions as a ready-made schedule: what is left is looking and deciding. Those milliseconds would drown in
the blocks' own scatter, so they are taken with the blocks emptied, and set beside whole generations.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from diffusers import DiffusionPipeline, PixArtTransformer2DModel
from model import add_timing_arguments
from rich.console import Console
from rich.table import Table
from timing import interleave, ratio
from torch.utils.flop_counter import FlopCounterMode

from ada.data import load_prompts
from ada.policy import AdaPolicy, BaseModel, LadderPolicy, StepPolicy, describe
from ada.rollouts import EMBEDDED, EMBEDDED_ARGUMENTS
from ada.schedules import Ladder
from blockdance import PolicyState, Reuse, ReuseSchedule, apply_blockdance

STEPS, TOKENS, WIDTH, PROMPT, PROMPT_TOKENS, SIDE = 20, 4096, 1152, 4096, 120, 128
BRANCHES = 2


def full_size_state(step: int, device: str) -> PolicyState:
    """What a policy sees of one image of PixArt-α at 1024 pixels before a step: noise of the right shapes."""
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    actions = torch.full((1, STEPS), -1)
    actions[:, :step] = 0
    tensors = {
        "latents": draw(1, 4, SIDE, SIDE), "clean": draw(1, 4, 4, SIDE, SIDE), "features": draw(1, TOKENS, WIDTH),
        "feature_change": draw(1, TOKENS, WIDTH), "prompt_embeds": draw(1, PROMPT_TOKENS, PROMPT),
        "prompt_mask": torch.ones(1, PROMPT_TOKENS), "sigmas": torch.linspace(1, 0.05, STEPS), "actions": actions,
    }  # fmt: skip
    return PolicyState(**{name: tensor.to(device) for name, tensor in tensors.items()}, class_labels=None, step=step)


def full_size_policies(base_model: BaseModel, ladder: Ladder) -> dict[str, AdaPolicy]:
    """Policies for it, not trained: what they compute does not depend on that."""
    sight = describe(full_size_state(ladder.decision_steps[-1] + 1, "cpu")).shape[1]
    costs, base = [0.25] * len(ladder.kinds), asdict(base_model)
    step = partial(
        StepPolicy, base_model=base, feature_width=WIDTH, kinds=[asdict(Reuse(boundary=20))], action_costs=[1.0, 0.25]
    )
    return {
        "ladder, as trained by default": LadderPolicy(
            base_model=base, ladder=ladder.to_dict(), reuse_costs=costs, sight_width=sight
        ),
        "steps, default size": step(),
        "steps, the paper's 0.08 B": step(hidden_size=1472, num_layers=3, num_heads=16),
    }


def macs_of(function: Any) -> float:
    """MACs of the matrix products of a call."""
    torch.backends.mha.set_fastpath_enabled(False)  # a fused encoder layer is one operation, which the counter does not know
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            function()
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    return counter.get_total_flops() / 2


def full_size_table(device: str, repeats: int) -> Table:
    """A row per policy: its decisions about one image over the image's denoising steps."""
    with torch.device("meta"):
        model = PixArtTransformer2DModel(sample_size=SIDE, caption_channels=PROMPT, use_additional_conditions=False)
        inputs = {
            "hidden_states": torch.empty(BRANCHES, 4, SIDE, SIDE), "timestep": torch.empty(BRANCHES),
            "encoder_hidden_states": torch.empty(BRANCHES, PROMPT_TOKENS, PROMPT),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        }  # fmt: skip
        step_macs = macs_of(lambda: model(**inputs))
    ladder = Ladder.load("configs/ladders/pixart_alpha.json")
    has_time = device.startswith("cuda") and repeats > 0
    if has_time:
        model = model.to_empty(device=device).to(torch.float16).eval()
        inputs = {
            name: torch.randn(value.shape, device=device, dtype=torch.float16) if isinstance(value, torch.Tensor) else value
            for name, value in inputs.items()
        }
    table = Table(
        "policy", "parameters", "decisions", "GMACs", "of a generation", "of its seconds", title="PixArt-α 1024, 20 steps"
    )
    for name, policy in full_size_policies(BaseModel.of(model), ladder).items():
        placed = policy.eval().to(device)
        states = [full_size_state(step + 1, device) for step in placed.decision_steps(STEPS)]

        def decide(policy: AdaPolicy = placed, states: list[PolicyState] = states) -> None:
            for state in states:
                policy.decide(state)

        macs, share = macs_of(decide), "needs a GPU"
        if has_time:
            with torch.no_grad():
                seconds = interleave({"policy": decide, "step": lambda: model(**inputs)}, repeats)
            share = f"{ratio(seconds['policy'], seconds['step'])[0] / STEPS:.3%}"
        row = (f"{placed.num_parameters:,}", str(len(states)), f"{macs / 1e9:.4f}", f"{macs / (step_macs * STEPS):.5%}", share)
        table.add_row(name, *row)
    return table


@contextmanager
def emptied(transformer: PixArtTransformer2DModel) -> Iterator[None]:
    """The transformer without what its blocks compute: outputs have the shapes of the inputs."""
    for block in transformer.transformer_blocks:
        block.forward = lambda hidden_states, *_args, **_kwargs: hidden_states + 1
    try:
        yield
    finally:
        for block in transformer.transformer_blocks:
            del block.forward


def embedded_table(policy_folder: str, batches: list[int], repeats: int, device: str, clock: Callable[[], float]) -> Table:
    """A row per batch size: what the policy's generation takes more than that of its own actions as a schedule, in turns."""
    pipe = DiffusionPipeline.from_pretrained(EMBEDDED).to(device)
    pipe.set_progress_bar_config(disable=True)
    policy = AdaPolicy.from_pretrained(policy_folder).to(device).with_options(mean_compute=0.8)
    captions = load_prompts("checkpoints/emoji-prompts", "test", "prompt", max(batches))["prompt"]
    table = Table(
        "images", "seconds", "added ms", "quartiles", "share", title=f"Embedded model, {STEPS} steps, {policy_folder}"
    )
    with apply_blockdance(pipe, policy) as handle:
        for batch in batches:

            def generate(plan: Any, batch: int = batch) -> None:
                handle.plan = plan
                noise = [torch.Generator().manual_seed(seed) for seed in range(batch)]
                pipe(
                    list(captions[:batch]),
                    num_inference_steps=STEPS,
                    generator=noise,
                    output_type="latent",
                    **EMBEDDED_ARGUMENTS,
                )

            generate(policy)
            schedule = ReuseSchedule(handle.report().actions, policy.kinds)
            seconds = statistics.median(interleave({"": partial(generate, schedule)}, repeats, clock=clock)[""])
            with emptied(pipe.transformer):
                generate(policy)  # the empty blocks lead it to actions of its own
                schedule = ReuseSchedule(handle.report().actions, policy.kinds)
                functions = {"schedule": partial(generate, schedule), "policy": partial(generate, policy)}
                taken = interleave(functions, repeats, clock=clock)
            more = [with_policy - without for with_policy, without in zip(taken["policy"], taken["schedule"], strict=True)]
            low, middle, high = (1e3 * value for value in statistics.quantiles(more, n=4))
            share = f"{middle / 1e3 / seconds:.2%}"
            table.add_row(str(batch), f"{seconds:.3f}", f"{middle:.1f}", f"{low:.1f} to {high:.1f}", share)
    return table


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="checkpoints/ada-emoji", help="folder or Hub id of the embedded model's policy")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    add_timing_arguments(parser)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    console = Console()
    console.print(full_size_table(options.device, options.repeats))
    if options.repeats:
        console.print(embedded_table(options.policy, options.batches, options.repeats, options.device, options.clock))


if __name__ == "__main__":
    main()
