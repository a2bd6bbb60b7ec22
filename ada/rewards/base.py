"""What a reward is: a small callable. Subclass `Reward` in ten lines and name it by `class_path` in a configuration."""

import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ada.sharing import plan_distinct

IMAGE_DIMENSIONS = 4
"""`(images, channels, height, width)`; videos have one more."""


class RewardError(ValueError):
    """A reward that cannot be given: its value is no finite number, or its weights do not fit."""


class WeightsError(RewardError):
    """Weights that are not those of the reward's network."""


class Reward(ABC):
    """Scores images: higher is better. A score depends on its own image, prompt and reference alone, not on the rest of the batch.

    A reward of your own needs `__call__`, and `to` if it holds tensors or modules:

        class Contrast(Reward):
            \"\"\"Standard deviation of the pixels.\"\"\"

            def __init__(self, scale: float = 1.0) -> None:
                self.scale = scale

            def __call__(self, images: Tensor, prompts: Sequence[str], reference: Tensor) -> Tensor:
                return self.scale * images.flatten(1).std(1)

    In YAML it is `{class_path: my_rewards.Contrast, init_args: {scale: 2.0}}`, wherever Python finds `my_rewards.py`.
    """

    compares_with_reference: bool = False
    """True for a reward that is a comparison with the reference already, such as SSIM: nothing is then subtracted from it."""

    @property
    def needs_text(self) -> bool:
        """Whether it reads prompts, which then have to be texts, not class labels: as a reward that it holds does, unless it says so
        itself."""
        return any(held.needs_text for held in vars(self).values() if isinstance(held, Reward))

    @abstractmethod
    def __call__(self, images: Tensor, prompts: Sequence[str], reference: Tensor) -> Tensor:
        """Scores a batch.

        Args:
            images: `(images, 3, height, width)` in [0, 1], on any device; `(batch, frames, 3, height, width)` for a video's reward.
            prompts: one per image.
            reference: the images of the same prompts and noise with every step computed, same shape.

        Returns:
            `(images,)`, float32, on the device of the reward or of the images.
        """

    def to(self, device: torch.device | str) -> "Reward":
        """Moves whatever the reward holds; a reward without parameters has nothing to move."""
        return self

    def describe(self) -> list[Any]:
        """What tells it from other rewards, as JSON, so that scores that are kept are not taken for another's: its class, and the numbers,
        strings, paths, tensors and rewards that it holds, also in lists, tuples and mappings. Networks are told by what they were loaded
        from; of a class outside this package its source tells, which changes while it is developed."""
        held = {
            name: _told(value)
            for name, value in vars(self).items()
            if isinstance(value, int | float | str | Path | Reward | Mapping | list | tuple | Tensor)
        }
        return [_told_class(type(self)), held]


def _told_class(kind: type) -> str:
    """A reward's class: one of this package by its name, another by its module and source."""
    if kind.__module__.startswith("ada."):
        return kind.__name__
    return f"{kind.__module__}.{kind.__qualname__} {source_digest(kind)}"


def source_digest(value: Any) -> str:
    """A digest of the source of a class or function; of one without, as those that are typed into an interpreter, always the same."""
    try:
        source = inspect.getsource(value)
    except (OSError, TypeError):
        source = ""
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def _told(value: Any) -> Any:
    """A setting of a reward as JSON; of what is no setting, its class."""
    if isinstance(value, Reward):
        return value.describe()
    if isinstance(value, Tensor):
        return [list(value.shape), hashlib.sha256(value.detach().cpu().double().numpy().tobytes()).hexdigest()[:16]]
    if isinstance(value, Mapping):
        return {str(name): _told(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_told(part) for part in value]
    if isinstance(value, Path):
        return str(value)
    return value if value is None or isinstance(value, int | float | str) else type(value).__name__


class Relative(Reward):
    """Quality lost rather than had: a reward of the image minus that of the reference.

    A policy cannot profit from prompts that score high anyway, and cannot gain more than `positive_cap` by images that please
    the scorer more than the reference does (reward hacking). `WeightedReward` does this by itself; this class is for a single
    reward, or for one part that wants its own cap.

    Args:
        reward: the reward to compare with.
        positive_cap: most that an image may gain over its reference.

    Raises:
        ValueError: a negative cap.
    """

    compares_with_reference = True

    def __init__(self, reward: Reward, positive_cap: float = 0.1) -> None:
        check_cap(positive_cap)
        self.reward = reward
        self.positive_cap = positive_cap

    def __call__(self, images: Tensor, prompts: Sequence[str], reference: Tensor) -> Tensor:
        difference = self.reward(images, prompts, reference) - score_images(self.reward, reference, prompts, reference)
        return difference.clamp(max=self.positive_cap)

    def to(self, device: torch.device | str) -> "Relative":
        self.reward.to(device)
        return self


def score_images(
    reward: Reward,
    images: Tensor,
    prompts: Sequence[str],
    reference: Tensor,
    max_images: int | None = None,
    name: str | None = None,
) -> Tensor:
    """Scores `(images,)`: each distinct image of a prompt once, and few at a time; one's score does not depend on the others.

    Args:
        reward, images, prompts, reference: as in `Reward`.
        max_images: most that are scored at once; None for no limit.
        name: what errors call the reward; by default its class.

    Raises:
        RewardError: it does not give one value an image, or fails on what is no image.
    """
    if not len(images):
        return reward(images, prompts, reference)
    plan = plan_distinct([images, reference], max_images, prompts)
    called, parts = name or type(reward).__name__, []
    for rows in (group.rows for group in plan.groups):
        with _explained(called, images.shape):
            scores = reward(rows.take(images), [prompts[row] for row in rows.rows], rows.take(reference))
        if not isinstance(scores, Tensor) or scores.shape != (len(rows),):
            gave = f"the shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else f"a {type(scores).__name__}"
            raise RewardError(
                f"The reward `{called}` gave {gave} for {len(rows)} images; it must give a tensor of one value an image."
            )
        parts.append(scores)
    joined: Tensor = plan.join(parts)
    return joined


@contextmanager
def _explained(called: str, shape: Sequence[int]) -> Iterator[None]:
    """Says what to take instead where a reward fails on what is no image."""
    try:
        yield
    except RewardError:
        raise
    except Exception as error:
        if len(shape) == IMAGE_DIMENSIONS:
            raise
        what = "no images, such as sounds: take `PSNR`, or a reward of your own"
        if len(shape) == IMAGE_DIMENSIONS + 1:
            what = "videos: wrap it in `ada.rewards.VideoReward`"
        raise RewardError(
            f"The reward `{called}` failed on the shape {tuple(shape)} ({type(error).__name__}: {error}). These are {what}."
        ) from error


def check_cap(positive_cap: float) -> None:
    """Raises a ValueError for a cap below zero."""
    if positive_cap < 0:
        raise ValueError(f"`positive_cap` must be 0 or more; got {positive_cap}.")
