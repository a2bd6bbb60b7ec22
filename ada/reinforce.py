"""Policy-gradient maths as pure tensor functions.

The policy is a product of independent categorical distributions, one per decision (BlockDance-Ada: Bernoulli, with two
actions). Shapes: `prompts` × `group` schedules × `decisions` × `actions`.
"""

from typing import Literal

import torch
from torch import Tensor

AdvantageKind = Literal["none", "self_critical", "leave_one_out", "group", "ema"]


def sample_actions(logits: Tensor, group_size: int, generator: torch.Generator | None = None) -> Tensor:
    """Draws `group_size` schedules per prompt.

    Args:
        logits: `(prompts, decisions, actions)`.

    Returns:
        int64 `(prompts, group, decisions)`.
    """
    prompts, decisions, _ = logits.shape
    probabilities = logits.detach().float().softmax(-1).cpu().flatten(0, 1)
    drawn = torch.multinomial(probabilities, group_size, replacement=True, generator=generator)
    schedules: Tensor = drawn.unflatten(0, (prompts, decisions)).transpose(1, 2)
    return schedules.to(logits.device)


def log_prob(logits: Tensor, actions: Tensor) -> Tensor:
    """Log-probability of schedules, summed over their decisions: log π(u|z, c) = Σₜ log πₜ(uₜ).

    Args:
        logits: `(prompts, decisions, actions)`.
        actions: int64 `(prompts, group, decisions)`.

    Returns:
        `(prompts, group)`.
    """
    log_probabilities = logits.log_softmax(-1).unsqueeze(1).expand(-1, actions.shape[1], -1, -1)
    return log_probabilities.gather(-1, actions.unsqueeze(-1)).squeeze(-1).sum(-1)


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the policy in nats, summed over decisions: `(prompts,)`."""
    log_probabilities = logits.log_softmax(-1)
    return -(log_probabilities.exp() * log_probabilities).sum((-2, -1))


def reward(compute_saved: Tensor, quality: Tensor, quality_weight: Tensor) -> Tensor:
    """R = C + λ·Q (BlockDance-Ada's reward; λ = 2 in the paper).

    Args:
        compute_saved: C, `(prompts, group)`.
        quality: Q, `(prompts, group)`.
        quality_weight: λ, `(prompts,)`.
    """
    return compute_saved + quality_weight[:, None] * quality


def check_quality_weights(bounds: tuple[float, float]) -> tuple[float, float]:
    """The range that λ is drawn from, as floats.

    Raises:
        ValueError: the bounds are not two positive numbers, the smaller first.
    """
    if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1]:
        raise ValueError(f"`quality_weight_range` must be two positive numbers, the smaller first; got {bounds}.")
    return float(bounds[0]), float(bounds[1])


def check_group(kind: AdvantageKind, group_size: int) -> None:
    """Raises a ValueError for a kind of advantage that compares within the group, and a group of one."""
    if kind in ("leave_one_out", "group") and group_size < 2:
        raise ValueError(
            f"Advantages of kind `{kind}` compare schedules of one prompt: `group_size` must be 2 or more; got {group_size}."
        )


def advantages(
    rewards: Tensor,
    kind: AdvantageKind,
    greedy_rewards: Tensor | None = None,
    baseline: float = 0.0,
    epsilon: float = 1e-6,
) -> Tensor:
    """Advantages of the schedules of each prompt's group.

    Args:
        rewards: `(prompts, group)`.
        kind: `none` is the plain reward, as in the paper; `self_critical` subtracts the reward of the greedy schedule (Rennie
            et al., 2017); `leave_one_out` the mean of the others in the group (Kool et al., 2019); `group` subtracts the
            group's mean and divides by its deviation (GRPO, Shao et al., 2024); `ema` subtracts `baseline`.
        greedy_rewards: `(prompts,)`, for `self_critical`.
        baseline: running mean of the rewards, for `ema`.
        epsilon: added to the deviation in `group`.

    Raises:
        ValueError: a kind that compares within the group, and a group of one; a missing `greedy_rewards`.
    """
    group = rewards.shape[1]
    check_group(kind, group)
    if kind == "none":
        return rewards
    if kind == "self_critical":
        if greedy_rewards is None:
            raise ValueError("Advantages of kind `self_critical` need the rewards of the greedy schedules.")
        return rewards - greedy_rewards[:, None]
    if kind == "leave_one_out":
        return (rewards - rewards.mean(1, keepdim=True)) * group / (group - 1)
    if kind == "group":
        deviation = rewards.std(1, keepdim=True)
        return (rewards - rewards.mean(1, keepdim=True)) / (deviation + epsilon)
    if kind == "ema":
        return rewards - baseline
    raise ValueError(f"`advantage` must be one of {', '.join(AdvantageKind.__args__)}; got {kind!r}.")


def policy_gradient_loss(log_probs: Tensor, advantage: Tensor) -> Tensor:
    """REINFORCE: a scalar whose gradient is −E[A ∇ log π]. Both arguments are `(prompts, group)`."""
    return -(advantage.detach() * log_probs).mean()


def clipped_loss(log_probs: Tensor, old_log_probs: Tensor, advantage: Tensor, clip_range: float) -> Tensor:
    """PPO's clipped surrogate (Schulman et al., 2017, equation 7), for rollouts that are used more than once.

    At `log_probs == old_log_probs` its gradient is REINFORCE's. All tensors are `(prompts, group)`.
    """
    ratio = (log_probs - old_log_probs.detach()).exp()
    weight = advantage.detach()
    return -torch.min(ratio * weight, ratio.clamp(1 - clip_range, 1 + clip_range) * weight).mean()
