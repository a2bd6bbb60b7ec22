"""Several rewards as one."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ada.rewards.base import Reward, RewardError, check_cap, score_images
from ada.rewards.statistics import RunningStatistics

Normalisation = Literal["running", "reference"]

QUALITY = "total quality"
KEPT_NAMES = {"damage", QUALITY}
"""What tables of rollouts keep beside the parts, by name: what an image loses, and Q."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RewardResult:
    """A reward and its named parts, each `(images,)`, and which images count, bool `(images,)`."""

    total: Tensor
    parts: dict[str, Tensor]
    kept: Tensor


@dataclass(frozen=True)
class _Scores:
    """Of one part: its values, relative or not, and those of the references where they were needed; each `(images,)`."""

    values: Tensor
    of_reference: Tensor | None

    def blame(self, image: int) -> str:
        """Says of a value that is not finite which it is, and whose."""
        of_reference = self.of_reference is not None and not self.of_reference[image].isfinite()
        return f"{self.values[image].item()} for {'the reference of image' if of_reference else 'image'} {image}"


class WeightedReward:
    """A weighted sum of named rewards: Σ weight · min(part, cap), each part relative to the reference by default.

    Parts are computed in float32 outside mixed precision, and returned as they are: before normalisation, cap and weight.

    Args:
        rewards: the parts by name.
        weights: a weight for each of the names.
        relative: parts that score an image by itself give its score minus the reference's: quality lost, not quality had.
            Parts that compare with the reference anyway (SSIM, PSNR, …) stay as they are.
        positive_cap: most that a relative part may be, after normalisation: 0 gives no gain for pleasing a scorer more than the
            reference does (reward hacking).
        normalisation: by part, what its values are divided by. `running`: the standard deviation of its values so far.
            `reference`: that of the scores of the references so far, so that 1 is a typical difference between prompts. The mean
            of the same values is subtracted from parts that are not relative; a relative one keeps its zero, the reference.
            Statistics grow by calls with `update_statistics`, over all processes, and are kept in checkpoints.
        max_images: most images that are scored at once; of equal ones, only the first is.
        on_broken: what a value that is no finite number does: `stop` raises, `drop` leaves the image out with a logged warning.

    Raises:
        ValueError: names that differ between the arguments, or that tables of rollouts need themselves, a negative cap, an unknown
            choice, or `reference` for a part that compares with the reference anyway.
    """

    def __init__(
        self,
        rewards: Mapping[str, Reward],
        weights: Mapping[str, float],
        relative: bool = True,
        positive_cap: float = 0.0,
        normalisation: Mapping[str, Normalisation] | None = None,
        on_broken: Literal["stop", "drop"] = "stop",
        max_images: int | None = 16,
    ) -> None:
        if not rewards or set(rewards) != set(weights):
            raise ValueError(f"`rewards` and `weights` must name the same parts; got {sorted(rewards)} and {sorted(weights)}.")
        taken = sorted(KEPT_NAMES & set(rewards))
        if taken:
            raise ValueError(
                f"`rewards` must not name a part {taken[0]!r}, under which something else is kept. Give it another name."
            )
        check_cap(positive_cap)
        if on_broken not in ("stop", "drop"):
            raise ValueError(f"`on_broken` must be 'stop' or 'drop'; got {on_broken!r}.")
        self.rewards, self.weights = dict(rewards), dict(weights)
        self.relative, self.positive_cap, self.on_broken = relative, positive_cap, on_broken
        self.max_images = max_images
        self.normalisation = dict(normalisation or {})
        self._check_normalisation()
        self._statistics = {name: RunningStatistics() for name in self.normalisation}
        self.before_sharing: Callable[[], None] = lambda: None
        """Called right before statistics are brought together over all processes, so that none waits for one that has failed."""

    def _check_normalisation(self) -> None:
        for name, kind in self.normalisation.items():
            if name not in self.rewards:
                raise ValueError(f"`normalisation` names {name!r}, which is none of the parts {sorted(self.rewards)}.")
            if kind not in ("running", "reference"):
                raise ValueError(f"`normalisation` of {name!r} must be 'running' or 'reference'; got {kind!r}.")
            if kind == "reference" and self.rewards[name].compares_with_reference:
                raise ValueError(
                    f"`normalisation` of {name!r} cannot be 'reference': it compares with the reference, whose own value never "
                    f"varies. Choose 'running', or leave it out."
                )

    @torch.inference_mode()
    def __call__(
        self, images: Tensor, prompts: Sequence[str], reference: Tensor, update_statistics: bool = False
    ) -> RewardResult:
        """Scores a batch; shapes as in `Reward`.

        Args:
            images, prompts, reference: as in `Reward`.
            update_statistics: lets `normalisation` learn from this batch; for training, not for validation.

        Returns:
            Total and parts. A dropped image has the mean of the kept ones of its prompt (of the batch, if there are none).

        Raises:
            RewardError: names the part, the prompt and the image that gave no finite number; when told to drop, if no image is left.
        """
        with torch.autocast(images.device.type, enabled=False):
            scores = {name: self._score(name, images, prompts, reference) for name in self.rewards}
        kept = self._find_kept(scores, prompts)
        if update_statistics and self._statistics:
            self.before_sharing()
            for name, statistics in self._statistics.items():
                statistics.update(self._normalising(name, scores[name])[kept])
        total = sum(
            (self.weights[name] * self._contribution(name, part.values) for name, part in scores.items()),
            torch.zeros(len(images), device=images.device),
        )
        parts = {name: part.values for name, part in scores.items()}
        if not kept.all():
            total = _fill(total, kept, prompts)
            parts = {name: _fill(values, kept, prompts) for name, values in parts.items()}
        return RewardResult(total, parts, kept)

    def check_repeatable(self) -> None:
        """For results that are kept: the value of an image must not depend on those that were scored before it, or with it.

        Raises:
            ValueError: there is `normalisation`, or `on_broken` is `drop`.
        """
        if self.normalisation or self.on_broken == "drop":
            raise ValueError(
                "What a schedule does to an image is scored once and kept, so the reward can neither learn a `normalisation` on the way "
                "nor `drop` broken images, which would leave gaps. Leave both out and balance the parts by `weights`; only the paper's "
                "algorithm (configs/paper_ada.yaml) takes them, without a `table`."
            )

    def is_relative(self, name: str) -> bool:
        """Whether a part is the difference to the reference's score."""
        return self.relative and not self.rewards[name].compares_with_reference

    def _score(self, name: str, images: Tensor, prompts: Sequence[str], reference: Tensor) -> _Scores:
        reward = self.rewards[name]
        if reward.needs_text and not all(isinstance(prompt, str) for prompt in prompts):
            raise RewardError(
                f"The reward `{name}` reads prompts, and these are none, such as {prompts[0]!r}: take one that looks at images alone, as "
                "`PerceptualDistance` does."
            )
        own = score_images(reward, images, prompts, reference, self.max_images, name).float().to(images.device)
        if not self.is_relative(name) and self.normalisation.get(name) != "reference":
            return _Scores(own, None)
        of_reference = score_images(reward, reference, prompts, reference, self.max_images, name)
        of_reference = of_reference.float().to(images.device)
        return _Scores(own - of_reference if self.is_relative(name) else own, of_reference)

    def _find_kept(self, scores: Mapping[str, _Scores], prompts: Sequence[str]) -> Tensor:
        """Images whose parts are all finite, bool `(images,)`."""
        kept = torch.ones(len(prompts), dtype=torch.bool, device=next(iter(scores.values())).values.device)
        for name, part in scores.items():
            finite = part.values.isfinite()
            for image in (~finite).nonzero().flatten().tolist():
                message = f"The reward `{name}` gave {part.blame(image)} of the batch, prompt {prompts[image]!r}."
                if self.on_broken == "stop":
                    raise RewardError(
                        f"{message} Check that the model decodes this prompt to a finite image in its precision, and the reward."
                    )
                logger.warning("%s The image is left out.", message)
            kept = kept & finite
        if not kept.any():
            raise RewardError(
                f"None of the {len(prompts)} images of the batch has a finite reward: see the warnings before. "
                f"Check that the model decodes to finite images in its precision."
            )
        return kept

    def _normalising(self, name: str, part: _Scores) -> Tensor:
        """The values that a part's statistics are of."""
        if self.normalisation[name] == "running":
            return part.values
        assert part.of_reference is not None
        return part.of_reference

    def _contribution(self, name: str, values: Tensor) -> Tensor:
        """A part after normalisation and cap."""
        if name in self._statistics:
            statistics = self._statistics[name]
            centre = 0.0 if self.is_relative(name) else statistics.mean
            values = (values - centre) / statistics.deviation
        return values.clamp(max=self.positive_cap) if self.is_relative(name) else values

    def describe(self) -> dict[str, Any]:
        """What tells one such reward from another: the parts as `Reward.describe` tells them, weights and normalisation."""
        parts = {name: reward.describe() for name, reward in self.rewards.items()}
        settings = {"weights": self.weights, "relative": self.relative, "cap": self.positive_cap}
        return {"parts": parts, "normalisation": self.normalisation} | settings

    def to(self, device: torch.device | str) -> "WeightedReward":
        """Moves every part."""
        for reward in self.rewards.values():
            reward.to(device)
        return self

    def state(self) -> dict[str, list[float]]:
        """The statistics by part, for a checkpoint."""
        return {name: statistics.state() for name, statistics in self._statistics.items()}

    def load_state(self, state: Mapping[str, Sequence[float]]) -> None:
        """Takes up the statistics that `state` gave; parts that it lacks begin anew."""
        for name in self._statistics.keys() & state.keys():
            self._statistics[name].load(state[name])


def _fill(values: Tensor, kept: Tensor, prompts: Sequence[str]) -> Tensor:
    """Gives dropped images the mean of the kept ones of their prompt, or of the batch: a value that says nothing of them."""
    filled, keep = values.clone(), kept.tolist()
    for image in (~kept).nonzero().flatten().tolist():
        alike = [other for other, prompt in enumerate(prompts) if keep[other] and prompt == prompts[image]]
        filled[image] = values[alike].mean() if alike else values[kept].mean()
    return filled
