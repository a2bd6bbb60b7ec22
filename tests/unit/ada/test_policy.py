"""The policy network and its decisions."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import build_pixart, build_sd3

from ada import AdaPolicy, IncompatiblePolicyError
from ada.hub import save_policy
from ada.types import PolicyState
from blockdance import Reuse, apply_blockdance

KINDS = (Reuse(boundary=3, order=1), Reuse(boundary=1))
COSTS = [1.0, 0.1, 0.5]


def build_policy(**options: object) -> AdaPolicy:
    policy = AdaPolicy.for_transformer(build_pixart(), 16, KINDS, COSTS, hidden_size=16, num_layers=1, num_heads=2, **options)
    torch.nn.init.normal_(policy.head[-1].weight)
    return policy


def build_state(images: int = 3, num_steps: int = 20, tokens: int = 5) -> PolicyState:
    generator = torch.Generator().manual_seed(1)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return PolicyState(
        latents=randn(images, 4, 8, 8),
        prompt_embeds=randn(images, tokens, 12),
        prompt_mask=torch.ones(images, tokens),
        features=randn(images, 16, 16),
        feature_change=randn(images, 16, 16) * 0.1,
        sigmas=torch.linspace(1, 0.05, num_steps),
        decision_step=round(0.4 * num_steps),
        num_steps=num_steps,
    )


@pytest.mark.parametrize(("num_steps", "first", "last"), [(20, 9, 18), (50, 21, 47), (8, 4, 7)])
def test_decides_after_the_prefix_and_before_the_tail(num_steps: int, first: int, last: int) -> None:
    steps = build_policy().decided_steps(num_steps)
    assert (steps[0], steps[-1]) == (first, last)


def test_one_policy_serves_any_number_of_steps_and_prompt_length() -> None:
    policy = build_policy()
    for num_steps, tokens in [(20, 5), (50, 9)]:
        schedule = policy.decide(build_state(num_steps=num_steps, tokens=tokens))
        assert schedule.actions.shape == (3, num_steps)
        assert schedule.actions[:, : round(0.4 * num_steps) + 1].sum() == 0
        assert schedule.actions[:, round(0.95 * num_steps) :].sum() == 0
        assert schedule.actions.sum() > 0


def test_padding_and_the_rest_of_the_batch_do_not_matter() -> None:
    policy, state = build_policy(), build_state()
    weights = torch.tensor([1.0, 2.0, 4.0])
    logits = policy(state, weights)
    padded = replace(
        state,
        prompt_embeds=torch.cat([state.prompt_embeds, torch.randn(3, 4, 12)], 1),
        prompt_mask=torch.cat([state.prompt_mask, torch.zeros(3, 4)], 1),
    )
    torch.testing.assert_close(policy(padded, weights), logits, atol=1e-5, rtol=0)
    per_image = ("latents", "prompt_embeds", "prompt_mask", "features", "feature_change")
    alone = replace(state, **{name: getattr(state, name)[1:2] for name in per_image})
    torch.testing.assert_close(policy(alone, weights[1:2]), logits[1:2], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["latents", "prompt_embeds", "features", "feature_change", "sigmas"])
def test_every_part_of_the_state_reaches_the_logits(name: str) -> None:
    policy, state = build_policy(), build_state()
    other = replace(state, **{name: getattr(state, name).flip(0) * 1.5})
    assert not torch.allclose(policy(state, torch.ones(3)), policy(other, torch.ones(3)), atol=1e-4)


def test_quality_weight_reaches_the_logits() -> None:
    policy, state = build_policy(), build_state()
    assert not torch.allclose(policy(state, torch.ones(3)), policy(state, torch.full((3,), 8.0)), atol=1e-4)


@pytest.mark.parametrize("compute", [1.0, 0.9, 0.8])
def test_budget_is_met_by_the_most_wanted_steps(compute: float) -> None:
    policy, state = build_policy(), build_state()
    actions = policy.with_options(compute=compute).decide(state).actions
    spent = torch.tensor(COSTS)[actions].mean(1)
    assert (spent <= compute + 1e-6).all()
    largest_saving = 1 - min(COSTS)
    assert (spent > compute - largest_saving / 20 - 1e-6).all()
    logits = policy(state, torch.full((3,), policy.quality_weight))
    wanted = logits[..., 1:].max(-1).values - logits[..., 0]
    reused = actions[:, list(policy.decided_steps(20))] > 0
    for image in range(3):
        if reused[image].any():
            assert wanted[image][reused[image]].min() >= wanted[image][~reused[image]].max()
    assert policy.compute is None, "with_options must leave the policy itself alone"


@pytest.mark.parametrize("options", [{"compute": 0.0}, {"compute": 1.5}, {"quality_weight": -1.0}])
def test_wrong_options_are_named(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        build_policy().with_options(**options)


def test_folder_round_trip_and_card(tmp_path: Path) -> None:
    policy, state = build_policy(quality_weight=3.0, quality_weight_range=[1.0, 9.0]), build_state()
    save_policy(policy, tmp_path, "checkpoints/some-model", [{"rollouts": 0, "reward": 0.0}, {"rollouts": 8, "reward": 0.25}])
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    again = AdaPolicy.from_pretrained(tmp_path)
    assert again.kinds == KINDS
    assert again.quality_weight_range == (1.0, 9.0)
    assert torch.equal(again.decide(state).actions, policy.decide(state).actions)
    assert torch.equal(again.action_costs, torch.tensor(COSTS))
    card = (tmp_path / "README.md").read_text()
    assert "| 8 | 0.2500 |" in card
    assert 'from_pretrained("checkpoints/some-model")' in card


def test_another_architecture_is_refused_with_what_differs() -> None:
    with pytest.raises(
        IncompatiblePolicyError, match="transformer: PixArtTransformer2DModel here, SD3Transformer2DModel there"
    ):
        apply_blockdance(build_sd3(), build_policy(), num_inference_steps=20)
