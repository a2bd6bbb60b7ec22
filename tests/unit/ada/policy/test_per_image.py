"""Images of one batch with budgets of their own get what each gets alone."""

import pytest
import torch
from ladders import build_frozen
from policies import build_step_policy

from ada.policy import PerImage, StepPolicy
from ada.rollouts import Case, FrozenPipeline
from blockdance import Plan, ScheduleError

CASES = [Case("a red apple", 1), Case("dog", 2), Case("the sun over the sea", 3), Case("dog", 2)]


@pytest.fixture(scope="module")
def frozen() -> FrozenPipeline:
    return build_frozen(output_type="latent")


@pytest.fixture(scope="module")
def policy(frozen: FrozenPipeline) -> StepPolicy:
    return build_step_policy(frozen)


def generate(frozen: FrozenPipeline, cases: list[Case], plan: Plan) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and actions."""
    done = frozen.generate([case.prompt for case in cases], [case.seed for case in cases], plan)
    return done.images, done.report.actions


def test_every_image_gets_what_its_wish_gives_it_alone(frozen: FrozenPipeline, policy: StepPolicy) -> None:
    """Two λ and two budgets; the same caption and noise twice, with different wishes."""
    wishes = [
        policy.with_options(quality_weight=0.5),
        policy.with_options(compute=0.9),
        policy.with_options(quality_weight=8.0),
        policy.with_options(compute=0.8),
    ]
    latents, actions = generate(frozen, CASES, PerImage(wishes))
    assert len({tuple(row) for row in actions.tolist()}) >= 3
    assert not torch.equal(actions[1], actions[3]), "the wishes must differ in what they do"
    for image, (case, wish) in enumerate(zip(CASES, wishes, strict=True)):
        alone, taken = generate(frozen, [case], wish)
        assert torch.equal(actions[image], taken[0])
        torch.testing.assert_close(latents[image], alone[0], rtol=0, atol=1e-4)


def test_what_does_not_fit_together_is_named(frozen: FrozenPipeline, policy: StepPolicy) -> None:
    with pytest.raises(ValueError, match="one policy per image; got none"):
        PerImage([])
    other = StepPolicy(**policy.config)
    with pytest.raises(ValueError, match="options of one network"):
        PerImage([policy, other])
    with pytest.raises(ScheduleError, match="policies for 2 images, but the batch has 4"):
        generate(frozen, CASES, PerImage([policy, policy]))
