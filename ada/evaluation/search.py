"""A sample of schedules, run from the shared prefix; and the best static one of them at each level of compute."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ada.backbone import Backbone
from ada.evaluation.measure.metrics import LATENT, Metric, latent_distance
from ada.evaluation.methods.base import STATIC, Method, planned_method
from ada.policy import AdaPolicy
from ada.rollout import Denoiser, Prefix
from blockdance import ForwardCost, Reuse, ReuseSchedule, blockdance_n

INTERVALS = (2, 3, 4)


@dataclass(frozen=True)
class Offer:
    """The schedules to choose from.

    Args:
        actions: int64 `(schedules, num_steps)`; the first computes every step.
        kinds: what the actions refer to.
        saved: float64 `(schedules,)`, share of the denoising MACs that each saves.
    """

    actions: Tensor
    kinds: tuple[Reuse, ...]
    saved: Tensor


def sample_schedules(
    kinds: Sequence[Reuse], decided: range, num_steps: int, count: int, cost: ForwardCost, generator: torch.Generator
) -> Offer:
    """Full compute, BlockDance-2, 3 and 4 of every kind at every phase, and random schedules: as many as asked for, all different.

    A random schedule reuses a uniformly drawn number of the decided steps; half of them stay with one kind, the others mix.

    Args:
        kinds: the kinds of reuse on offer.
        decided: the steps that may reuse.
        num_steps: denoising steps.
        count: schedules to return; fewer where there are not that many.
        cost: of one forward call of the transformer.
        generator: of the drawing.
    """
    chosen: dict[tuple[int, ...], None] = {(0,) * num_steps: None}
    for action in range(1, len(kinds) + 1):
        for interval in INTERVALS:
            for phase in range(interval):
                steps = {step for step in decided if (step - decided.start + 1 + phase) % interval}
                chosen[tuple(action if step in steps else 0 for step in range(num_steps))] = None
    tries = 0
    while len(chosen) < count and tries < 20 * count:
        tries += 1
        number = int(torch.randint(1, len(decided) + 1, (), generator=generator))
        places = torch.randperm(len(decided), generator=generator)[:number]
        drawn = torch.randint(1, len(kinds) + 1, (number,), generator=generator)
        if tries % 2:
            drawn = drawn[:1].expand(number)
        row = [0] * num_steps
        for place, action in zip(places.tolist(), drawn.tolist(), strict=True):
            row[decided[place]] = action
        chosen[tuple(row)] = None
    actions = torch.tensor(list(chosen)[:count])
    return Offer(actions, tuple(kinds), cost.compute_saved(actions, kinds))


def offering_policy(backbone: Backbone, kinds: Sequence[Reuse], like: AdaPolicy | None = None) -> AdaPolicy:
    """An untrained policy that tells a `Denoiser` which steps are decided and which kinds of reuse there are."""
    prefix, tail = (like.prefix, like.forced_tail) if like is not None else (0.4, 0.05)
    return AdaPolicy.for_transformer(
        backbone.transformer, backbone.feature_width(), kinds, backbone.action_costs(kinds),
        prefix=prefix, forced_tail=tail, hidden_size=8, num_heads=1, num_layers=1,
    )  # fmt: skip


@torch.inference_mode()
def run_schedules(
    denoiser: Denoiser,
    prompts: Sequence[str],
    indices: Sequence[int],
    actions: Tensor,
    metrics: Mapping[str, Metric],
    *,
    most_rows: int = 128,
    advance: Callable[[int], None] = lambda done: None,
) -> dict[str, Tensor]:
    """Every schedule on every prompt, from the shared prefix.

    Args:
        denoiser: made for the schedules' kinds of reuse.
        prompts: the prompts.
        indices: each prompt's index in its data set.
        actions: int64 `(schedules, num_steps)`, the first of which computes every step: it is the reference.
        metrics: by name.
        most_rows: most images to denoise at once; lower it where memory is short.
        advance: called with the number of images that are done.

    Returns:
        By metric, and for the latent distance, `(prompts, schedules)`.
    """
    # schedules that begin alike go together, so that they share their steps
    order = sorted(range(len(actions)), key=lambda place: actions[place].tolist())
    found: dict[str, Tensor] = {}
    done = 0
    for place, (prompt, index) in enumerate(zip(prompts, indices, strict=True)):
        prefix = denoiser.prefix([prompt], [index])
        full = denoiser.suffixes(prefix.snapshot, actions[None, :1])[0][0]
        for start in range(0, len(order), most_rows):
            chosen = order[start : start + most_rows]
            latents = denoiser.suffixes(prefix.snapshot, actions[None, chosen])[0][0]
            values = _values(denoiser, prefix, latents, full, prompt, metrics)
            for name, part in values.items():
                found.setdefault(name, torch.zeros(len(prompts), len(actions)))[place, chosen] = part.float().cpu()
            done += len(chosen)
            advance(done)
    return found


def _values(
    denoiser: Denoiser, prefix: Prefix, latents: Tensor, full: Tensor, prompt: str, metrics: Mapping[str, Metric]
) -> dict[str, Tensor]:
    """Metrics of several endings `(schedules, …)` of one prompt's prefix."""
    images = denoiser.backbone.decode(latents)
    reference = prefix.reference.to(images).expand_as(images)
    values = {name: metric.reward(images, [prompt] * len(images), reference) for name, metric in metrics.items()}
    values[LATENT] = latent_distance(latents.flatten(1), full.flatten(1).expand(len(latents), -1))
    return values


def best_static(saved: Tensor, errors: Tensor, level: float) -> int | None:
    """The schedule with the smallest mean error among those that save `level` or more; None where none does.

    Args:
        saved: `(schedules,)`.
        errors: `(images, schedules)`, lower is better.
        level: share of the compute to save.
    """
    enough = saved >= level - 1e-9
    if not enough.any():
        return None
    means = errors.double().mean(0)
    means[~enough] = torch.inf
    return int(means.argmin())


def static_methods(offer: Offer, errors: Tensor, levels: Sequence[float], searched_on: str) -> list[Method]:
    """The best static schedule at each level, as methods; a schedule that is best at several levels comes once.

    Args:
        offer: the schedules.
        errors: `(images, schedules)` on prompts other than those evaluated.
        levels: shares of the compute to save.
        searched_on: what the errors were measured on, for the note.
    """
    methods: dict[int, Method] = {}
    for level in levels:
        best = best_static(offer.saved, errors, level)
        if best is None or best in methods:
            continue
        row = offer.actions[best : best + 1]
        kinds = "; ".join(f"{action}: {kind}" for action, kind in enumerate(offer.kinds, 1))
        note = (
            f"The schedule of smallest mean latent distance that saves {level:.0%} or more, of {len(offer.actions)} tried on "
            f"{searched_on}: {''.join(map(str, row[0].tolist()))} (0: compute; {kinds})."
        )
        plan = ReuseSchedule(row, offer.kinds)
        name, label = f"{STATIC}, {float(offer.saved[best]):.0%}", f"{float(offer.saved[best]):.0%}"
        methods[best] = planned_method(name, STATIC, "static", label, offer.actions.shape[1], plan, note)
    return list(methods.values())


def default_kinds(num_blocks: int) -> tuple[Reuse, ...]:
    """Two boundaries, two thirds (the paper's) and the last block, in both orders."""
    paper = round(20 / 28 * num_blocks)
    return tuple(Reuse(boundary=boundary, order=order) for boundary in (paper, num_blocks - 1) for order in (0, 1))


def periodic(interval: int, kind: Reuse, num_steps: int) -> Tensor:
    """BlockDance-N's actions `(num_steps,)` with 1 for reuse."""
    return blockdance_n(num_steps, interval, kind).actions[0]
