"""Deciders in a stock pipeline that starts from an image, so that the first steps never run."""

from collections.abc import Sequence
from dataclasses import asdict

import pytest
import torch
from integration.pipelines import FROM_IMAGE, generate
from torch import Tensor, nn

from ada.policy import BaseModel, LadderPolicy, StepPolicy
from ada.policy.sight import describe
from ada.schedules import Ladder
from blockdance import BlockDanceReport, Plan, PolicyState, Reuse, ReuseSchedule, apply_blockdance

STEPS = 10
KINDS = (Reuse(boundary=2), Reuse(boundary=1))
CASE = FROM_IMAGE["stable_diffusion_3"]


class Recorder:
    """Reuses in every open step, and keeps what it was shown."""

    kinds = KINDS[:1]

    def __init__(self, *steps: int) -> None:
        self._steps = steps
        self.states: list[PolicyState] = []

    def decision_steps(self, num_steps: int) -> tuple[int, ...]:
        return self._steps

    def decide(self, state: PolicyState) -> ReuseSchedule:
        self.states.append(state)
        actions = (torch.arange(state.num_steps) >= state.step).long()
        return ReuseSchedule(actions.expand(state.num_images, -1), self.kinds)

    def check(self, transformer: nn.Module) -> None:
        """Serves any."""


def run(plan: Plan, strength: float) -> tuple[Tensor, BlockDanceReport]:
    pipeline = CASE.build()
    with apply_blockdance(pipeline, plan) as handle:
        latents = generate(CASE, pipeline, steps=STEPS, strength=strength)
        return latents, handle.report()


def test_asked_at_its_own_decision_steps_that_run() -> None:
    """From step 4 on: nothing to see after 2, too little after 4, enough after 6."""
    decider = Recorder(2, 4, 6)
    _, report = run(decider, 0.6)
    assert [state.step for state in decider.states] == [7]
    assert report.actions.tolist() == [[-1] * 4 + [0, 0, 0, 1, 1, 1]] * 2


def test_asked_as_early_as_it_can_be_where_its_decision_steps_never_ran() -> None:
    decider = Recorder(2, 3)
    _, report = run(decider, 0.6)
    (state,) = decider.states
    assert state.step == 6
    assert state.actions.tolist() == [[-1] * 4 + [0, 0] + [-1] * 4] * 2
    assert state.clean.shape[:2] == (2, 2)
    assert torch.equal(state.sigmas[4:], state.sigmas[4:].sort(descending=True).values)
    assert report.actions.tolist() == [[-1] * 4 + [0, 0, 1, 1, 1, 1]] * 2


def test_too_few_steps_to_ask_are_said() -> None:
    decider = Recorder(2)
    with pytest.warns(
        UserWarning, match=r"saved nothing .* Recorder was never asked. Of 10 steps those from 8 on ran.*`strength`"
    ):
        run(decider, 0.2)
    assert not decider.states


RUNGS = ("0000000000", "0000000010", "0000000101", "0000110101", "0000000211")


def ladder_policy(compute: float | None = None, rungs: Sequence[str] = RUNGS, **options: float) -> LadderPolicy:
    """Its decisions come after steps 2 and 5; to see little damage in every rung makes it save."""
    recorder = Recorder(2)
    run(recorder, 1.0)
    actions = torch.tensor([[int(action) for action in rung] for rung in rungs])
    policy = LadderPolicy(
        base_model=asdict(BaseModel.of(CASE.build().transformer)), ladder=Ladder(actions, KINDS, (2, 5)).to_dict(),
        reuse_costs=[0.3, 0.6], sight_width=describe(recorder.states[0]).shape[1], num_components=3, compute=compute, **options,
    )  # fmt: skip
    torch.nn.init.constant_(policy.level, -9.0)
    return policy.eval()


@pytest.mark.parametrize(
    ("strength", "taken"),
    [(0.8, "  00000211"), (0.6, "    000211"), (0.4, "      0011")],
    ids=["its second stage", "the second stage is the first that runs", "after its last stage"],
)
def test_a_ladder_goes_on_from_where_the_generation_starts(strength: float, taken: str) -> None:
    """The rung that reuses early has nothing left that saves as much, though as a whole it saves most."""
    _, report = run(ladder_policy(), strength)
    expected = [-1 if action == " " else int(action) for action in taken]
    assert report.actions.tolist() == [expected] * 2


def test_a_budget_is_one_of_the_steps_that_run() -> None:
    """Six steps run. Rungs on offer spend 1, 1 − 0.7/6 = 0.88, 1 − 1.4/6 = 0.77 and 1 − 1.8/6 = 0.7 of them."""
    _, report = run(ladder_policy(compute=0.76), 0.6)
    assert report.actions.tolist() == [[-1] * 4 + [0, 0, 0, 1, 0, 1]] * 2


@pytest.mark.parametrize("wish", ["compute", "batch_compute"])
def test_rungs_that_would_have_reused_before_still_meet_a_budget(wish: str) -> None:
    """All of them reuse at step 4, the first that runs: what they do later is on offer, two reuses of six steps."""
    _, report = run(ladder_policy(rungs=("0000000000", "0000110101"), **{wish: 0.77}), 0.6)
    assert report.actions.tolist() == [[-1] * 4 + [0, 0, 0, 1, 0, 1]] * 2
    with pytest.raises(ValueError, match=r"The first 7 of 10 steps do not run.*spends 0\.77 at least; got 0\.6\."):
        run(ladder_policy(rungs=("0000000000", "0000110101", "0000111111"), **{wish: 0.6}), 0.3)


@pytest.mark.parametrize(("compute", "taken"), [(None, "0000010111"), (0.72, "0000010111"), (0.79, "0000010101")])
def test_an_image_that_was_made_to_compute_goes_on(compute: float | None, taken: str) -> None:
    """Step 4 was to reuse and computes: what is left of the rungs comes all the same, within a budget what meets it."""
    pipeline = CASE.build()
    policy = ladder_policy(rungs=("0000000000", "0000110101", "0000110111"), compute=compute)
    with apply_blockdance(pipeline, policy) as handle:

        def compute_step_4(pipe: object, step: int, timestep: object, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
            if step == 3:
                handle.invalidate()
            return inputs

        generate(CASE, pipeline, steps=STEPS, strength=1.0, callback_on_step_end=compute_step_4)
        report = handle.report()
    assert report.actions.tolist() == [[int(action) for action in taken]] * 2
    assert report.predicted_damage.isnan().all(), "what becomes of it is not known"


@pytest.mark.parametrize(("compute", "reused"), [(None, 4), (0.66, 2), (0.83, 1)])
def test_a_step_policy_decides_about_the_steps_that_are_left(compute: float | None, reused: int) -> None:
    """From step 4 on it is asked after step 5; a reuse saves one of six steps."""
    policy = StepPolicy(
        base_model=asdict(BaseModel.of(CASE.build().transformer)), feature_width=CASE.build().transformer.inner_dim,
        kinds=[asdict(KINDS[0])], action_costs=[1.0, 0.0], prefix=0.2, forced_tail=0.0, compute=compute,
        hidden_size=16, num_heads=2,
    )  # fmt: skip
    with torch.no_grad():
        policy.head[-1].bias.copy_(torch.tensor([0.0, 1.0]))
    _, report = run(policy.eval(), 0.6)
    assert (report.actions[:, :4] == -1).all()
    assert (report.actions[:, 4:6] == 0).all()
    assert report.actions[:, 6:].sum(1).tolist() == [reused] * 2
