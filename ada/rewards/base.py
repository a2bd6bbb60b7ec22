"""What a reward is: a small callable. Subclass `Reward` in ten lines and name it by `class_path` in a configuration."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ada.types import RewardResult


class RewardError(ValueError):
    """A reward that is not a finite number."""


class Reward(ABC):
    """Scores images: higher is better."""

    @abstractmethod
    def __call__(self, images: Tensor, prompts: Sequence[str], reference: Tensor) -> Tensor:
        """Scores a batch.

        Args:
            images: `(images, 3, height, width)` in [0, 1].
            prompts: one per image.
            reference: the images of the same prompts and noise with every step computed, same shape.

        Returns:
            `(images,)`, float32.
        """

    def to(self, device: torch.device | str) -> "Reward":
        """Moves whatever the reward holds; a reward without parameters has nothing to move."""
        return self


class Relative(Reward):
    """Quality lost rather than had: a reward of the image minus that of the reference.

    A policy cannot profit from prompts that score high anyway, and cannot gain more than `positive_cap` by images that please
    the scorer more than the reference does (reward hacking).

    Args:
        reward: the reward to compare with.
        positive_cap: most that an image may gain over its reference.
    """

    def __init__(self, reward: Reward, positive_cap: float = 0.1) -> None:
        if positive_cap < 0:
            raise ValueError(f"`positive_cap` must be 0 or more; got {positive_cap}.")
        self.reward = reward
        self.positive_cap = positive_cap

    def __call__(self, images: Tensor, prompts: Sequence[str], reference: Tensor) -> Tensor:
        difference = self.reward(images, prompts, reference) - self.reward(reference, prompts, reference)
        return difference.clamp(max=self.positive_cap)

    def to(self, device: torch.device | str) -> "Relative":
        self.reward.to(device)
        return self


class WeightedReward:
    """A weighted sum of named rewards.

    Args:
        rewards: the parts by name.
        weights: a weight for each of the names.

    Raises:
        ValueError: names that differ between the two.
    """

    def __init__(self, rewards: Mapping[str, Reward], weights: Mapping[str, float]) -> None:
        if not rewards or set(rewards) != set(weights):
            raise ValueError(f"`rewards` and `weights` must name the same parts; got {sorted(rewards)} and {sorted(weights)}.")
        self.rewards = dict(rewards)
        self.weights = dict(weights)

    @torch.inference_mode()
    def __call__(self, images: Tensor, prompts: Sequence[str], reference: Tensor) -> RewardResult:
        """Scores a batch; shapes as in `Reward`.

        Raises:
            RewardError: names the part, the prompt and the image that gave no finite number.
        """
        parts = {name: reward(images, prompts, reference).float() for name, reward in self.rewards.items()}
        for name, values in parts.items():
            broken = (~values.isfinite()).nonzero().flatten().tolist()
            if broken:
                raise RewardError(
                    f"The reward `{name}` gave {values[broken[0]].item()} for image {broken[0]} of the batch, prompt "
                    f"{prompts[broken[0]]!r}. Check that the model decodes this prompt to a finite image in its precision."
                )
        total = sum(
            (self.weights[name] * values for name, values in parts.items()), torch.zeros(len(images), device=images.device)
        )
        return RewardResult(total, parts)

    def to(self, device: torch.device | str) -> "WeightedReward":
        """Moves every part."""
        for reward in self.rewards.values():
            reward.to(device)
        return self
