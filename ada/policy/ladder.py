"""The policy that decides in stages among the rungs of a ladder."""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from typing_extensions import Self

from ada.policy.base import AdaPolicy, BaseModel
from ada.policy.budgets import ROUNDING, nearest, share_budget, trim
from ada.policy.curve import Curve
from ada.policy.sight import NUM_SIGNS, describe
from ada.policy.wishes import WishError, number
from ada.schedules import Ladder
from blockdance import PolicyState, ReuseSchedule
from blockdance.observation import HISTORY

SHARPNESS = 30.0
"""Slope of the logits, in training: at 30, half a step of compute doubles the odds of a rung."""

LEAST_DEVIATION = 1e-6
LEAST_SPREAD = 1e-3
"""Deviation of a main component, as a share of the largest, below which the cases do not tell what it is."""

SLACK = 0.1
"""Share of a step by which a budget may be missed, by the images of a batch all together, rather than cut a rung."""

DAMAGE_FLOOR = 1e-3
"""Bounded damage below which, and above one minus which, the log-odds are no longer told apart."""


class LadderPolicy(AdaPolicy):
    """Decides after each of the ladder's decision steps which rungs stay open, and at last which one is taken.

    The network is linear, so that hundreds of images suffice: at every stage the log-odds of every rung's damage are predicted from what
    is seen (the signs, and the main components of pooled features and prompt), m = level + coefficients · seen. The damage that it
    expects, q̂, is the mean of sigmoid(m + error) over the errors that it makes, as it does not know an image better than that. The
    logits are the reward C − λ·q̂: one network serves every λ, budget and stage, and says what it expects.

    Args:
        base_model: fingerprint of the model it is trained on, as in `BaseModel`.
        ladder: the schedules on offer, as `Ladder.to_dict` gives them.
        reuse_costs: cost of a step under each kind of reuse, relative to a computed one.
        sight_width: length of what it sees, `describe(state).shape[1]`.
        num_components: main components kept of what is seen beside the signs.
        quality_weight: λ at which `decide` works unless told otherwise.
        quality_weight_range: the λ it was trained on.
        curve: what each λ saved and damaged on held-out prompts, as `Curve.to_dict` gives it; None before it is measured.
        compute: share of the compute that every image spends, to the nearest whole step; None where λ or a batch decides.
        batch_compute: share that the images of a batch spend on average, to the nearest whole step of one of them; None likewise.

    Raises:
        ValueError: an argument that is out of its bounds, or of the wrong length.
    """

    form: ClassVar[str] = "ladder"

    def __init__(
        self,
        *,
        base_model: dict[str, Any],
        ladder: dict[str, Any],
        reuse_costs: Sequence[float],
        sight_width: int,
        num_components: int = 24,
        quality_weight: float = 2.0,
        quality_weight_range: Sequence[float] = (0.2, 30.0),
        curve: Mapping[str, Any] | None = None,
        compute: float | None = None,
        batch_compute: float | None = None,
    ) -> None:
        config = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        given = Ladder.from_dict(ladder)
        super().__init__(config, BaseModel(**base_model), given.kinds)
        if len(reuse_costs) != len(given.kinds) or not all(0 <= cost <= 1 for cost in reuse_costs):
            raise ValueError(
                f"`reuse_costs` must lie between 0 and 1, one for each of the {len(given.kinds)} kinds; got {reuse_costs}."
            )
        self.ladder, self.reuse_costs = given, list(reuse_costs)
        self.compute, self.batch_compute = compute, batch_compute
        self.curve = None if curve is None else Curve.from_dict(curve)
        self._stretched: dict[int, Ladder] = {}
        self.check_budget(given.num_steps)
        stages, rungs = len(given.decision_steps), len(given)
        self.mean: Tensor
        self.deviation: Tensor
        self.components: Tensor
        self.register_buffer("mean", torch.zeros(stages, sight_width))
        self.register_buffer("deviation", torch.ones(stages, sight_width))
        self.register_buffer("components", torch.zeros(sight_width - NUM_SIGNS, num_components))
        self.error_variance: Tensor
        self.register_buffer("error_variance", torch.zeros(stages, rungs))
        self.level = nn.Parameter(torch.zeros(rungs))
        self.coefficients = nn.Parameter(torch.zeros(stages, NUM_SIGNS + num_components, rungs))

    # --- the network ---

    @torch.no_grad()
    def calibrate(self, sights: Tensor, stages: Tensor, damage: Tensor) -> None:
        """Sets what needs no gradient: mean and deviation of what is seen at every stage (the network reads how an image differs from
        others), the main components, and the level of every rung. Components beyond those that the cases span stay zero.

        Args:
            sights: `(cases, nodes, width)`, of one case or more.
            stages: int64 `(nodes,)`.
            damage: bounded, `(cases, rungs)`.
        """
        for stage in range(len(self.mean)):
            seen = sights[:, stages == stage].flatten(0, 1)
            self.mean[stage], self.deviation[stage] = seen.mean(0), _deviation(seen)
        pooled = self._standardise(sights, stages)[..., NUM_SIGNS:].flatten(0, 1)
        kept = min(self.components.shape[1], *pooled.shape)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            _, _, directions = torch.pca_lowrank(pooled, kept, niter=4)
        scale = _deviation(pooled @ directions)
        # few cases span few directions: along the others they do not differ, and dividing by that would make other images infinite
        is_told = scale > (LEAST_SPREAD * scale.max()).clamp(min=LEAST_DEVIATION)
        self.components.zero_()
        self.components[:, :kept] = directions / scale * is_told
        self.level.copy_(torch.logit(damage, DAMAGE_FLOOR).mean(0))

    @torch.no_grad()
    def measure_errors(self, log_odds: Tensor, stages: Tensor, damage: Tensor) -> None:
        """Sets how far the log-odds of the damage lie about the predicted ones, at every stage and of every rung.

        Args:
            log_odds: predicted, `(cases, nodes, rungs)`.
            stages: int64 `(nodes,)`.
            damage: bounded, `(cases, rungs)`.
        """
        errors = torch.logit(damage, DAMAGE_FLOOR)[:, None] - log_odds
        for stage in range(len(self.error_variance)):
            self.error_variance[stage] = errors[:, stages == stage].square().mean((0, 1))

    def predict(self, sights: Tensor, stages: Tensor) -> Tensor:
        """The bounded damage that it expects of every rung, in (0, 1).

        Args:
            sights: `(…, nodes, width)`, as `describe` gives them.
            stages: int64 `(nodes,)`, the stage of each.

        Returns:
            `(…, nodes, rungs)`, float32 whatever the policy's own precision.
        """
        return self.expected_damage(self.log_odds(self.inputs(sights, stages), stages), stages).float()

    def inputs(self, sights: Tensor, stages: Tensor) -> Tensor:
        """What the coefficients are for: signs and main components, standardised, `(…, nodes, NUM_SIGNS + num_components)`."""
        seen = self._standardise(sights, stages)
        return torch.cat([seen[..., :NUM_SIGNS], seen[..., NUM_SIGNS:] @ self.components], -1)

    def log_odds(self, inputs: Tensor, stages: Tensor) -> Tensor:
        """The expected log-odds of the damage, as `torch.logit(damage, DAMAGE_FLOOR)` measures them: `(…, nodes, rungs)`."""
        return self.level + torch.einsum("...nw,nwr->...nr", inputs, self.coefficients[stages])

    def expected_damage(self, log_odds: Tensor, stages: Tensor) -> Tensor:
        """The mean of sigmoid(log-odds + error) over normal errors of the measured variance, by MacKay's approximation
        (The Evidence Framework Applied to Classification Networks, 1992): `(…, nodes, rungs)`, like `log_odds`."""
        return (log_odds / (1 + math.pi / 8 * self.error_variance[stages]).sqrt()).sigmoid()

    def _standardise(self, sights: Tensor, stages: Tensor) -> Tensor:
        return ((sights.to(self.mean.dtype) - self.mean[stages]) / self.deviation[stages]).clamp(-5, 5)

    def logits(self, damage: Tensor, quality_weight: Tensor, lost: Tensor | float = 0.0) -> Tensor:
        """(C − λ·q̂)/(1 + λ), sharpened: `(…, rungs)`.

        Args:
            damage: `(…, rungs)`.
            quality_weight: λ, of the shape before the rungs, or broadcast to it.
            lost: share of the compute that a rung would have saved at steps that are over and computed, `(…, rungs)`.
        """
        saved = self.ladder.saved(self.reuse_costs).to(damage) - lost
        weight = quality_weight[..., None]
        return SHARPNESS * (saved - weight * damage) / (1 + weight)

    # --- decisions ---

    def decision_steps(self, num_steps: int) -> tuple[int, ...]:
        return self.ladder_for(num_steps).decision_steps

    def ladder_for(self, num_steps: int) -> Ladder:
        """Its ladder for a number of steps, stretched once: every denoising step of a generation asks for it.

        Raises:
            LadderError: too few steps for the decisions.
        """
        if num_steps not in self._stretched:
            self._stretched[num_steps] = self.ladder.for_steps(num_steps)
        return self._stretched[num_steps]

    @torch.no_grad()
    def decide(self, state: PolicyState) -> ReuseSchedule:
        """Chooses the most probable rung that is still open, or with a budget the one that keeps to it; images that are on no rung
        compute to the end.

        An image that computed where its rung reuses, because its first steps never ran (a generation that starts late) or because
        something made it compute, goes on with the rest of any rung that reused no more than it did.

        Raises:
            WishError: a budget that its rungs cannot meet at this number of steps, or in a generation that starts so late.
        """
        self.check_budget(state.num_steps)
        ladder = self.ladder_for(state.num_steps)
        stage = max(0, bisect_right(ladder.decision_steps, state.step - 1) - 1)
        rungs = ladder.actions.to(state.actions.device)
        past, behind = state.actions[:, None, : state.step], rungs[:, : state.step]
        is_open, has_strayed = _open_rungs(behind, past)
        done, is_on_rung = past.clamp(min=0), is_open.any(1)
        step_saves = torch.tensor([0.0, *(1 - cost for cost in self.reuse_costs)], device=rungs.device)
        lost = (step_saves[behind] - step_saves[done]).sum(-1) / state.num_steps
        damage = self.predict(describe(state)[:, None], torch.tensor([stage], device=state.latents.device))[:, 0]
        weight = torch.full((state.num_images,), self.quality_weight, device=damage.device)
        logits = self.logits(damage, weight, lost)
        ahead = rungs[:, state.step :].expand(state.num_images, -1, -1)
        actions = torch.cat([done.expand(-1, len(rungs), -1), ahead], -1)
        images = torch.arange(state.num_images, device=rungs.device)
        if self.compute is None and self.batch_compute is None:
            chosen = logits.masked_fill(~is_open, -torch.inf).argmax(1)
            taken = actions[images, chosen]
        else:
            chosen, taken = self._within_budget(actions, step_saves, state, is_open, damage, logits)
        # what becomes of a rung that is cut is not known
        is_whole = (taken == actions[images, chosen]).all(1) & is_on_rung & ~has_strayed
        expected = torch.where(is_whole, damage.gather(1, chosen[:, None])[:, 0], torch.nan)
        return ReuseSchedule(torch.where(is_on_rung[:, None], taken, 0), self.kinds, expected)

    def _within_budget(
        self, actions: Tensor, step_saves: Tensor, state: PolicyState, is_open: Tensor, damage: Tensor, logits: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The open rungs that come nearest to the budget, int64 `(images,)`, and their actions, trimmed to it, `(images, num_steps)`.

        Args:
            actions: int64 `(images, rungs, num_steps)`: what each image has done, and what every rung does from here.
            step_saves: share of a step that each action saves, `(actions,)`.
            state: of the images.
            is_open, damage, logits: `(images, rungs)`.

        Raises:
            WishError: a generation that starts too late for it.
        """
        num_run = state.num_steps - (state.actions[0, : state.step] < 0).sum()
        step_saves = step_saves / num_run
        saved = step_saves[actions].sum(-1)
        tolerance = step_saves[1:].min() * SLACK
        wanted = 1 - cast(float, self.batch_compute if self.compute is None else self.compute)
        if self.compute is not None:
            target = torch.full_like(saved[:, 0], wanted)
        else:
            target = share_budget(damage, saved, is_open, step_saves[actions[:, 0, : state.step]].sum(1), wanted)
            tolerance = tolerance / len(target)
        trimmed = trim(actions, step_saves, state.step, target)
        is_nearest = nearest(trimmed, actions, step_saves, target, is_open, tolerance)
        chosen = logits.masked_fill(~is_nearest, -torch.inf).argmax(1)
        taken = trimmed[torch.arange(len(chosen), device=chosen.device), chosen]
        # only the first decision of a generation that started late knows fewer steps than it has; reading a device's number takes time
        if state.clean.shape[1] < min(HISTORY, state.step):
            reached, skipped = step_saves[taken].sum(1), state.num_steps - int(num_run)
            least = float(reached.mean() if self.compute is None else reached.min())
            if skipped and least < wanted - float(step_saves.max()) / 2 - ROUNDING:
                raise WishError(
                    f"The first {skipped} of {state.num_steps} steps do not run, and of the others this policy spends "
                    f"{1 - least:.2f} at least; got {1 - wanted:g}. Give a larger budget, or from an image a greater `strength`."
                )
        return chosen, taken

    def with_options(  # type: ignore[override]  # each form has wishes of its own
        self,
        *,
        quality_weight: float | None = None,
        compute: float | None = None,
        mean_compute: float | None = None,
        batch_compute: float | None = None,
        quality: float | None = None,
    ) -> Self:
        """The same network with one wish.

        Args:
            quality_weight: λ: larger computes more.
            compute: share of the denoising compute that every image spends, to the nearest whole step.
            mean_compute: share that images spend on average over many; each as it needs, whatever its company.
            batch_compute: share that the images of every batch spend on average, to the nearest whole step of one of them; each as it
                needs beside the others.
            quality: share of the images that may change visibly, on average.

        Raises:
            WishError: more than one wish, no number, or one that cannot be met; it says what can.
        """
        wishes = {
            "quality_weight": quality_weight, "compute": compute, "mean_compute": mean_compute, "batch_compute": batch_compute,
            "quality": quality,
        }  # fmt: skip
        given = {name: number(name, value) for name, value in wishes.items() if value is not None}
        if not given:
            return self._copy()
        if len(given) > 1:
            raise WishError(f"Give one of {', '.join(wishes)}; got {', '.join(given)}.")
        options: dict[str, float | None] = {"compute": None, "batch_compute": None}
        ((name, value),) = given.items()
        if name in options:
            budgeted = self._copy(**options | {name: value})
            budgeted.check_budget(self.ladder.num_steps)
            return budgeted
        if name == "mean_compute":
            value = self._measured().weight_for_compute(value)
        elif name == "quality":
            value = self._measured().weight_for_changed(value)
        else:
            low, high = self.quality_weight_range
            if not low <= value <= high:
                raise WishError(f"`quality_weight` must lie in the trained range, {low:g} to {high:g}; got {value}.")
        return self._copy(quality_weight=value, **options)

    def check_budget(self, num_steps: int) -> None:
        """Checks that it can decide in so many steps, and keep to its budget, if it has one: stretched, its rungs may save less.

        Raises:
            WishError: the budget lies beyond the most saving rung.
            LadderError: too few steps for the decisions.
        """
        ladder = self.ladder_for(num_steps)
        for name, value in (("compute", self.compute), ("batch_compute", self.batch_compute)):
            if value is not None:
                least = 1 - float(ladder.saved(self.reuse_costs).max())
                if not least - 0.5 / num_steps <= value <= 1:
                    raise WishError(
                        f"`{name}` must lie between {least:.2f}, the most saving rung at {num_steps} steps, and 1; got {value}."
                    )

    def _measured(self) -> Curve:
        if self.curve is None:
            raise WishError(
                "This policy has no measured curve, so it knows no λ for a mean: give `quality_weight` or `compute`."
            )
        return self.curve


def _open_rungs(behind: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
    """Which rungs each image can go on with, bool `(images, rungs)`, and which images have computed where all that they could be on
    reuse, or did not run at all, bool `(images,)`.

    Args:
        behind: what the rungs do at the steps that are over, int64 `(rungs, steps)`.
        past: what the images did there, −1 where nothing ran, int64 `(images, 1, steps)`.
    """
    is_same = past.clamp(min=0) == behind
    is_open = is_same.all(-1)
    has_strayed = ~is_open.any(1) | (past < 0).any(-1)[:, 0]
    return is_open | has_strayed[:, None] & (is_same | (past <= 0)).all(-1), has_strayed


def _deviation(values: Tensor) -> Tensor:
    """Standard deviation over the rows, `LEAST_DEVIATION` or more: also where there is one row."""
    return values.std(0, correction=min(1, len(values) - 1)).clamp(min=LEAST_DEVIATION)
