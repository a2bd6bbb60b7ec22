"""The paper's policy: its wishes, and its first folders."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from ada import AdaPolicy
from ada.policy import StepPolicy, WishError
from blockdance import PolicyState, StepUnknownError

GOLDEN = Path(__file__).parents[3] / "golden" / "policy_v1"


def build_policy(**options: Any) -> StepPolicy:
    settings: dict[str, Any] = {
        "base_model": {"transformer": "", "num_blocks": 4, "latent_channels": 4, "prompt_width": 0}, "feature_width": 8, "prefix": 0.2,
        "kinds": [{"boundary": 1}], "action_costs": [1.0, 0.3], "hidden_size": 16, "num_heads": 2, "num_layers": 1,
    }  # fmt: skip
    return StepPolicy(**settings | options)


def test_wishes_outside_a_step_policys_training_are_named() -> None:
    policy = AdaPolicy.from_pretrained(GOLDEN)
    for weight in (0.4, 16.1, float("nan")):
        with pytest.raises(ValueError, match=f"trained range, 0.5 to 16; got {weight}"):
            policy.with_options(quality_weight=weight)
    for value in ("0.8", [0.8]):
        with pytest.raises(WishError, match="`compute` must be a number; got"):
            policy.with_options(compute=value)  # type: ignore[arg-type]


def test_a_budget_that_no_number_of_steps_meets_is_named() -> None:
    """A fifth and a tenth of the steps always compute, and each of the others costs 0.4 at least: 0.3 + 0.7 · 0.4 = 0.58."""
    policy = build_policy(action_costs=[1.0, 0.4, 0.6], kinds=[{"boundary": 1}, {"boundary": 0}], forced_tail=0.1)
    for compute in (0, 0.1, 0.57, 1.01, float("nan")):
        with pytest.raises(WishError, match=r"`compute` must lie between 0\.58, with every step that may reuse reused, and 1"):
            policy.with_options(compute=compute)
    least = policy.with_options(compute=0.59)
    least.check_budget(100)
    # of six steps two can reuse, and a budget may be missed by half a step: 1 - 2.5/6 * 0.6
    with pytest.raises(WishError, match=r"between 0\.75"):
        least.check_budget(6)


def test_steps_whose_noise_levels_nobody_tells_are_refused() -> None:
    """A transformer or a loop without a scheduler: every logit would be no number, and every step would compute without a word."""
    policy, levels = build_policy(), torch.linspace(1, 0.1, 10)
    for plan in (policy, policy.with_options(compute=0.8)):
        assert plan.decide(seen(levels)).actions.shape == (1, 10)
        with pytest.raises(StepUnknownError, match=r"noise levels of the steps to come.*`SamplingLoop\(…, scheduler=…\)`"):
            plan.decide(seen(torch.cat([levels[:3], torch.full((7,), torch.nan)])))


def seen(sigmas: Tensor) -> PolicyState:
    """What the policy sees of one image after three of ten steps."""
    actions = torch.tensor([[0] * 3 + [-1] * 7])
    return PolicyState(
        latents=torch.randn(1, 4, 8, 8), clean=torch.randn(1, 2, 4, 8, 8), features=torch.randn(1, 16, 8),
        feature_change=torch.randn(1, 16, 8), prompt_embeds=None, prompt_mask=None, class_labels=torch.tensor([3]), sigmas=sigmas,
        actions=actions, step=3,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_budget_does_not_depend_on_the_precision_of_the_weights(dtype: torch.dtype) -> None:
    policy = build_policy(prefix=0.1).to(dtype)
    wanted = torch.rand(1, len(policy.decided_steps(50)), 2, generator=torch.Generator().manual_seed(0))
    state = cast(PolicyState, SimpleNamespace(num_steps=50, step=5, actions=torch.zeros(1, 50, dtype=torch.int64)))
    for reuses in range(1, 41):
        budgeted = policy.with_options(compute=1 - reuses * 0.7 / 50)
        assert int((budgeted._meet_budget(wanted, state) > 0).sum()) == reuses


def test_no_wish_keeps_the_budget() -> None:
    policy = build_policy(compute=0.75)
    assert policy.with_options().compute == 0.75
    assert policy.with_options(quality_weight=2.0).compute is None
    assert policy.with_options(compute=0.9).quality_weight == policy.quality_weight


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"compute": 0.1}, "`compute` must lie between"),
        ({"quality_weight": -4}, "`quality_weight` must be a positive number; got -4"),
        ({"quality_weight_range": [1]}, "`quality_weight_range` must be two positive numbers"),
        (
            {"action_costs": [1.0]},
            r"`action_costs` must lie between 0 and 1, one for compute and one per kind: 2; got \[1\.0\]",
        ),
        ({"action_costs": [1.0, float("nan")]}, "`action_costs` must lie between 0 and 1"),
        ({"prefix": 0.8, "forced_tail": 0.3}, "`prefix` and `forced_tail` must be shares of the steps, less than 1 together"),
    ],
)
def test_arguments_that_make_no_policy_are_named(damage: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_policy(**damage)


@pytest.mark.parametrize(("cost", "compute", "reuses"), [(0.0, 0.9, 2), (0.3, 0.95, 1), (0.7, 0.9, 7), (0.85, 0.95, 7)])
def test_a_step_policy_comes_nearest_to_its_budget(cost: float, compute: float, reuses: int) -> None:
    """A reuse of twenty steps saves less than one of them where blocks after the boundary run."""
    policy = build_policy(action_costs=[1.0, cost], compute=compute)
    wanted = torch.rand(1, len(policy.decided_steps(20)), 2, generator=torch.Generator().manual_seed(0))
    state = SimpleNamespace(num_steps=20, step=5, actions=torch.zeros(1, 20, dtype=torch.int64))
    saving = (1 - cost) / 20
    assert reuses == min(range(15), key=lambda count: abs(1 - compute - count * saving))
    assert int((policy._meet_budget(wanted, cast(PolicyState, state)) > 0).sum()) == reuses


def test_version_one_is_read_and_decides() -> None:
    """The first published policy: 20 steps, first decision after step 8, the last step computes."""
    policy = AdaPolicy.from_pretrained(GOLDEN)
    assert type(policy) is StepPolicy
    assert policy.pooling == "raster", "as it was trained"
    assert policy.decision_steps(20) == (8,)
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    state = PolicyState(
        latents=randn(4, 4, 16, 16), clean=randn(4, 4, 4, 16, 16), features=randn(4, 64, 192),
        feature_change=randn(4, 64, 192), prompt_embeds=randn(4, 7, 192), prompt_mask=torch.ones(4, 7), class_labels=None,
        sigmas=torch.linspace(1, 0.05, 20), actions=torch.zeros(4, 20, dtype=torch.int64), step=9,
    )  # fmt: skip
    actions = policy.decide(state).actions
    assert actions.shape == (4, 20)
    assert actions[:, :9].sum() == 0
    assert actions[:, 19].sum() == 0
    assert actions.sum() > 0
    fast, slow = (policy.with_options(quality_weight=weight).decide(state).actions.sum() for weight in (0.5, 16.0))
    assert fast > slow
    assert (policy.with_options(compute=0.75).decide(state).actions.sum(1) == 5).all()
