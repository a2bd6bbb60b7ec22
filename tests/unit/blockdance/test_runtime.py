"""The runtime on toy blocks whose arithmetic shows what ran, and on small real transformers."""

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from conftest import build_flux, build_pixart, build_sd3
from torch import Tensor, nn

from blockdance import (
    BlockDanceConfig,
    BlockDanceError,
    BlockLayout,
    BlockReuse,
    Kind,
    PolicyState,
    Reuse,
    ReuseSchedule,
    ScheduleError,
    StepUnknownError,
    UnsupportedModelError,
    apply_blockdance,
    register_layout,
    remove_blockdance,
)


class AddBlock(nn.Module):
    """Adds a power of ten times the noise level: the digits of the sum tell which blocks ran when."""

    def __init__(self, amount: float) -> None:
        super().__init__()
        self.amount = nn.Parameter(torch.tensor(amount, dtype=torch.float64))
        self.calls = 0

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        self.calls += 1
        return hidden_states + self.amount * timestep[:, None]


class ToyTransformer(nn.Module):
    def __init__(self, num_blocks: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(AddBlock(10.0**index) for index in range(num_blocks))

    def forward(self, hidden_states: Tensor, timestep: Tensor, prompt: float = 0.0) -> Tensor:
        hidden_states = hidden_states + prompt
        for block in self.blocks:
            hidden_states = block(hidden_states, timestep)
        return hidden_states


register_layout(ToyTransformer, BlockLayout(lists=("blocks",)))


def run_toy(model: nn.Module, timesteps: list[float], batch: int = 1) -> list[list[float]]:
    zeros = torch.zeros(batch, 1, dtype=torch.float64)
    return [model(zeros, torch.full((batch,), timestep)).flatten().tolist() for timestep in timesteps]


def schedule(rows: list[list[int]], *kinds: Kind) -> ReuseSchedule:
    return ReuseSchedule(torch.tensor(rows), kinds)


def test_reuse_starts_after_the_boundary() -> None:
    """At timestep 2 the block after boundary 1 runs anew (2·100) on what blocks 0 and 1 gave at timestep 3 (3·11)."""
    model = ToyTransformer()
    apply_blockdance(model, schedule([[0, 1, 0]], Reuse(boundary=1)), num_inference_steps=3)
    assert run_toy(model, [3, 2, 1]) == [[333], [233], [111]]
    assert [block.calls for block in model.blocks] == [2, 2, 3]


def test_order_one_is_exact_where_outputs_are_linear_in_the_noise_level() -> None:
    model = ToyTransformer()
    plan = schedule([[0, 0, 1, 1, 0]], Reuse(boundary=2, order=1))
    apply_blockdance(model, plan, num_inference_steps=5)
    timesteps = [10, 7, 5, 4, 1]
    assert run_toy(model, timesteps) == [[111.0 * timestep] for timestep in timesteps]
    assert [block.calls for block in model.blocks] == [3, 3, 3]


def test_weight_scales_the_extrapolation() -> None:
    model = ToyTransformer()
    plan = schedule([[0, 0, 1]], Reuse(boundary=2, order=1, weight=0.5))
    apply_blockdance(model, plan, num_inference_steps=3)
    assert run_toy(model, [4, 3, 1])[2] == [222.0]  # half way from 333 to the exact 111


def test_blockdance_n_runs_exactly_the_blocks_it_should() -> None:
    model = ToyTransformer(16)
    with apply_blockdance(model, BlockDanceConfig(interval=3), num_inference_steps=20) as handle:
        run_toy(model, [float(20 - step) for step in range(20)])
        assert [block.calls for block in model.blocks] == [13] * 12 + [20] * 4
        assert handle.report().actions.sum() == 7


def test_images_of_a_batch_take_their_own_actions() -> None:
    rows = [[0, 0, 0, 0], [0, 1, 0, 1], [0, 1, 1, 2], [0, 0, 3, 2]]
    kinds = (Reuse(boundary=0), Reuse(boundary=1), Reuse(boundary=2, order=1))
    alone = []
    for row in rows:
        model = ToyTransformer()
        apply_blockdance(model, schedule([row], *kinds), num_inference_steps=4)
        alone.append(run_toy(model, [9, 7, 4, 2]))
    together = ToyTransformer()
    # the toy's inputs are all equal, which would pass for guidance branches
    apply_blockdance(together, schedule(rows, *kinds), num_inference_steps=4, guidance_branches=1)
    for step, outputs in enumerate(run_toy(together, [9, 7, 4, 2], batch=4)):
        assert outputs == [image[step][0] for image in alone]


def test_state_survives_an_exception_a_new_batch_and_a_second_generation() -> None:
    model = ToyTransformer()
    apply_blockdance(model, BlockDanceConfig(interval=2, reuse_range=(0, 1), boundary=1), num_inference_steps=4)
    expected = [[444], [344], [222], [122]]
    assert run_toy(model, [4, 3, 2, 1]) == expected
    run_toy(model, [4, 3])
    with pytest.raises(IndexError):
        model(torch.zeros(1, 1), torch.tensor(2.0))  # the blocks index a timestep per row
    assert run_toy(model, [4, 3, 2, 1]) == expected
    run_toy(model, [4, 3])  # abandoned half-way
    assert run_toy(model, [4, 3, 2, 1], batch=2) == [row * 2 for row in expected]


def test_guidance_that_stops_half_way_keeps_the_conditional_rows() -> None:
    """Rows are [uncond, cond]; the conditional ones start from other values, so that their cache can be told apart."""
    model = ToyTransformer()
    apply_blockdance(model, schedule([[0, 0, 1, 1, 1]], Reuse(boundary=1)), num_inference_steps=5, guidance_branches=2)
    both = torch.tensor([[0.0], [5000.0]], dtype=torch.float64)

    def run(rows: Tensor, timestep: float) -> list[float]:
        return model(rows, torch.full((len(rows),), timestep)).flatten().tolist()

    assert run(both, 5) == [555, 5555]
    assert run(both, 4) == [444, 5444]
    assert run(both[1:], 3) == [5344]  # 5044 from the cache of step 1, and 300
    assert [block.calls for block in model.blocks] == [2, 2, 3]
    assert run(both, 2) == [222, 5222]  # the unconditional rows have nothing to reuse, so the image computes
    assert run(both, 1) == [122, 5122]


def test_calls_that_the_pipeline_does_not_name_have_their_own_caches() -> None:
    """Conditional and unconditional calls on the same latents, as Lumina2 and Chroma make them."""
    model = ToyTransformer()
    apply_blockdance(model, schedule([[0, 1, 0]], Reuse(boundary=1)), num_inference_steps=3)
    outputs = []
    for timestep in (3.0, 2.0, 1.0):
        for prompt in (0.0, 5000.0):
            outputs += model(torch.zeros(1, 1, dtype=torch.float64), torch.tensor([timestep]), prompt).flatten().tolist()
    assert outputs == [333, 5333, 233, 5233, 111, 5111]


def test_each_of_many_tiles_has_a_cache_of_its_own() -> None:
    """Nine calls a step; every tile reuses what it gave itself."""
    model = ToyTransformer()
    scheduler = SimpleNamespace(timesteps=torch.tensor([3.0, 2.0, 1.0]))
    apply_blockdance(SimpleNamespace(transformer=model, scheduler=scheduler), schedule([[0, 1, 0]], Reuse(boundary=1)))
    for timestep, plain in ((3.0, 333), (2.0, 233), (1.0, 111)):
        tiles = [model(torch.full((1, 1), 1000.0 * tile), torch.tensor([timestep])) for tile in range(9)]
        assert [int(output) for output in tiles] == [1000 * tile + plain for tile in range(9)]


def test_a_branch_that_paused_reuses_nothing_from_before() -> None:
    """The second call of a step is left out at steps 1 and 2: at step 3 its cache is three steps old, so it computes."""
    model = ToyTransformer()
    apply_blockdance(model, schedule([[0, 0, 0, 1, 1]], Reuse(boundary=1)), num_inference_steps=5)
    latents, outputs = torch.zeros(1, 1, dtype=torch.float64), []
    for timestep in (5.0, 4.0, 3.0, 2.0, 1.0):
        for prompt in (0.0,) if timestep in (4.0, 3.0) else (0.0, 5000.0):
            outputs += model(latents, torch.tensor([timestep]), prompt).flatten().tolist()
    assert outputs == [555, 5555, 444, 333, 233, 5222, 133, 5122]


def test_a_generation_given_up_after_its_first_step_leaves_nothing_to_the_next() -> None:
    model = ToyTransformer()
    apply_blockdance(model, schedule([[0, 1, 0]], Reuse(boundary=1)), num_inference_steps=3)
    assert model(torch.full((1, 1), 5000.0), torch.tensor([3.0])).tolist() == [[5333]]
    assert run_toy(model, [3, 2, 1]) == [[333], [233], [111]]


def test_a_change_of_the_latents_size_drops_the_cache() -> None:
    """ChronoEdit drops frames half-way: what was cached no longer fits."""
    model = ToyTransformer()
    apply_blockdance(model, schedule([[0, 1, 1]], Reuse(boundary=1)), num_inference_steps=3)
    wide = torch.zeros(1, 2, dtype=torch.float64)
    assert model(wide, torch.tensor([3.0])).tolist() == [[333, 333]]
    assert model(wide[:, :1], torch.tensor([2.0])).tolist() == [[222]]
    assert model(wide[:, :1], torch.tensor([1.0])).tolist() == [[122]]


def test_single_blocks_are_reused_by_what_they_add() -> None:
    """Block Caching: a reused block adds what it added when it last ran; the others run, and refresh what they add."""
    model = ToyTransformer()
    kinds = (BlockReuse(blocks=(0, 2)), BlockReuse(blocks=(1,)))
    apply_blockdance(model, schedule([[0, 1, 2, 1]], *kinds), num_inference_steps=4)
    assert run_toy(model, [9, 7, 4, 2]) == [[999], [9 + 70 + 900], [4 + 70 + 400], [4 + 20 + 400]]
    assert [block.calls for block in model.blocks] == [2, 3, 2]
    with pytest.raises(ScheduleError, match="Block 3 does not exist"):
        apply_blockdance(ToyTransformer(), schedule([[0, 1]], BlockReuse(blocks=(1, 3))), num_inference_steps=2)
    with pytest.raises(ScheduleError, match="ascending"):
        BlockReuse(blocks=(2, 1))


def test_errors_say_what_to_do() -> None:
    model = ToyTransformer()
    with pytest.raises(ScheduleError, match="the model has 3 blocks"):
        apply_blockdance(model, BlockDanceConfig(boundary=3), num_inference_steps=4)
    with pytest.raises(ScheduleError, match="got int"):
        apply_blockdance(model, 2, num_inference_steps=4)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedModelError, match="register_layout"):
        apply_blockdance(nn.Sequential(nn.ModuleList()), BlockDanceConfig())
    with pytest.raises(UnsupportedModelError, match="UNet pipelines have none"):
        apply_blockdance(SimpleNamespace(unet=nn.Linear(1, 1)), BlockDanceConfig())
    apply_blockdance(model, BlockDanceConfig())
    with pytest.raises(StepUnknownError, match="num_inference_steps"):
        run_toy(model, [1])
    with pytest.raises(BlockDanceError, match="remove_blockdance"):
        apply_blockdance(model, BlockDanceConfig())
    remove_blockdance(model)
    handle = apply_blockdance(model, BlockDanceConfig(), num_inference_steps=4)
    with pytest.raises(ScheduleError, match="run the pipeline first"):
        handle.report()
    with pytest.raises(StepUnknownError, match="step 5 of 4"):
        run_toy(model, [5, 4, 3, 2, 1])
    handle.remove()
    apply_blockdance(model, BlockDanceConfig(boundary=1), num_inference_steps=4, guidance_branches=2)
    for batch in (1, 3):
        with pytest.raises(ScheduleError, match=rf"`guidance_branches=2` .* has {batch} rows.*guidance_branches=1"):
            run_toy(model, [4], batch)


# --- small real transformers ---


def pixart_inputs(batch: int) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(batch, 4, 8, 8),
        "encoder_hidden_states": torch.randn(batch, 5, 12),
        "encoder_attention_mask": torch.ones(batch, 5),
    }


def sd3_inputs(batch: int) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(batch, 4, 8, 8),
        "encoder_hidden_states": torch.randn(batch, 5, 12),
        "pooled_projections": torch.randn(batch, 12),
    }


def flux_inputs(batch: int) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(batch, 6, 4),
        "encoder_hidden_states": torch.randn(batch, batch, 12),  # as many text tokens as images: ids must not be split
        "pooled_projections": torch.randn(batch, 12),
        "img_ids": torch.randn(6, 3),
        "txt_ids": torch.randn(batch, 3),
    }


FAMILIES = {
    "pixart": (build_pixart, pixart_inputs),
    "sd3": (build_sd3, sd3_inputs),
    "flux": (build_flux, flux_inputs),
}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> tuple[nn.Module, Any]:
    build, inputs = FAMILIES[request.param]
    return build(), inputs


def call(model: nn.Module, inputs: dict[str, Any], timestep: float) -> Tensor:
    batch = len(inputs["hidden_states"])
    with torch.no_grad():
        return model(**inputs, timestep=torch.full((batch,), timestep), return_dict=False)[0]


def test_state_dict_does_not_see_the_views(family: tuple[nn.Module, Any], tmp_path: Any) -> None:
    model, make = family
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    apply_blockdance(model, schedule([[0, 1]], Reuse(boundary=1)), num_inference_steps=2)
    for timestep in (0.9, 0.5):
        call(model, make(2), timestep)
        assert list(model.state_dict()) == list(before)
    model.save_pretrained(tmp_path)
    remove_blockdance(model)
    again = type(model).from_pretrained(tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in again.state_dict().items())


def test_report_counts_macs_and_bytes() -> None:
    """A PixArt block: its MACs by hand, in the report, and bytes of the kept output."""
    model = build_pixart()
    inputs = pixart_inputs(2)
    handle = apply_blockdance(
        model, schedule([[0, 1, 0], [0, 0, 0]], Reuse(boundary=1)), num_inference_steps=3, guidance_branches=1
    )
    for timestep in (0.9, 0.5):
        call(model, inputs, timestep)
    report = handle.report()
    tokens, text, width = 16, 5, 16
    attention = 4 * tokens * width**2 + 2 * tokens**2 * width
    cross_attention = 2 * tokens * width**2 + 2 * text * width**2 + 2 * tokens * text * width
    feed_forward = 8 * tokens * width**2
    saved = (report.macs_full - report.macs_computed).tolist()
    assert saved == [2 * (attention + cross_attention + feed_forward), 0]
    assert report.actions.tolist() == [[0, 1, -1], [0, 0, -1]]
    kept = 2 * tokens * width * 4
    assert report.peak_cache_bytes == kept
    call(model, inputs, 0.1)
    assert handle.report().cache_bytes == 0
    assert "image 0: █1█" in str(handle.report())
    handle.remove()
    extrapolating = schedule([[0, 0, 1]], Reuse(boundary=1, order=1))
    handle = apply_blockdance(model, extrapolating, num_inference_steps=3, guidance_branches=1)
    for timestep in (0.9, 0.5):
        call(model, inputs, timestep)
    assert handle.report().cache_bytes == 2 * kept


class RecordingDecider:
    """Decides from the state which image reuses, and keeps what it saw."""

    kinds = (Reuse(boundary=1),)

    def __init__(self) -> None:
        self.states: list[PolicyState] = []

    def decision_steps(self, num_steps: int) -> tuple[int, ...]:
        return (1,)

    def check(self, transformer: nn.Module) -> None:
        assert isinstance(transformer, nn.Module)

    def decide(self, state: PolicyState) -> ReuseSchedule:
        self.states.append(state)
        actions = torch.zeros(len(state.latents), state.num_steps, dtype=torch.int64)
        actions[0, 2:] = 1
        return ReuseSchedule(actions, self.kinds)


def test_decider_sees_the_conditional_rows_and_is_asked_once() -> None:
    model = build_pixart()
    inputs = pixart_inputs(4)
    inputs["hidden_states"] = inputs["hidden_states"][:2].repeat(2, 1, 1, 1)
    outputs: list[Tensor] = []
    hook = model.transformer_blocks[1].register_forward_hook(lambda *call: outputs.append(call[-1].clone()))
    decider = RecordingDecider()
    handle = apply_blockdance(model, decider, num_inference_steps=4)
    for timestep in (0.9, 0.7, 0.5, 0.3):
        call(model, inputs, timestep)
    hook.remove()
    (state,) = decider.states
    assert torch.equal(state.latents, inputs["hidden_states"][2:])
    assert torch.equal(state.prompt_embeds, inputs["encoder_hidden_states"][2:])
    assert torch.equal(state.features, outputs[1][2:])
    torch.testing.assert_close(state.feature_change, (outputs[1][2:] - outputs[0][2:]) / (0.7 - 0.9))
    assert handle.report().actions.tolist() == [[0, 0, 1, 1], [0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[0, 0, 1, 1]] * 3, "returned actions for 3 images; this generation has 2."),
        ([[0, 0, 1, 1, 0]], "returned 5 steps of actions; this generation has 4."),
    ],
)
def test_a_decider_that_answers_for_others_is_told_both_numbers(rows: list[list[int]], message: str) -> None:
    model, decider = build_pixart(), RecordingDecider()
    decider.decide = lambda state: schedule(rows, *decider.kinds)  # type: ignore[method-assign]
    apply_blockdance(model, decider, num_inference_steps=4, guidance_branches=1)
    for timestep in (0.9, 0.7):
        call(model, pixart_inputs(2), timestep)
    with pytest.raises(ScheduleError, match=re.escape(f"RecordingDecider.decide {message}")):
        call(model, pixart_inputs(2), 0.5)


@pytest.mark.parametrize("kinds", [(Reuse(boundary=2),), (Reuse(boundary=1), Reuse(boundary=2)), ()])
def test_a_decider_that_answers_with_other_kinds_is_told_both(kinds: tuple[Reuse, ...]) -> None:
    """Its actions would be carried out as something else."""
    model, decider = build_pixart(), RecordingDecider()
    decider.decide = lambda state: schedule([[0, 0, len(kinds), 0]], *kinds)  # type: ignore[method-assign]
    apply_blockdance(model, decider, num_inference_steps=4, guidance_branches=1)
    for timestep in (0.9, 0.7):
        call(model, pixart_inputs(2), timestep)
    returned = "; ".join(map(str, kinds)) or "none"
    message = f"RecordingDecider.decide returned actions of the kinds {returned}, but its `kinds` are after block 1, order 0: "
    with pytest.raises(ScheduleError, match=re.escape(message)):
        call(model, pixart_inputs(2), 0.5)


def test_one_answer_for_all_images_expects_the_same_of_each() -> None:
    model, decider = build_pixart(), RecordingDecider()
    answer = ReuseSchedule(torch.tensor([[0, 0, 1, 1]]), decider.kinds, torch.tensor([0.25]))
    decider.decide = lambda state: answer  # type: ignore[method-assign]
    handle = apply_blockdance(model, decider, num_inference_steps=4, guidance_branches=1)
    for timestep in (0.9, 0.7, 0.5, 0.3):
        call(model, pixart_inputs(2), timestep)
    assert handle.report().predicted_damage.tolist() == [0.25, 0.25]
    assert str(handle.report()).count("damage 0.250 expected") == 2


def test_what_is_no_plan_is_told_what_a_plan_has() -> None:
    """Whoever has the members that the error names is taken."""
    members = {"kinds": (Reuse(boundary=1),), "decision_steps": RecordingDecider.decision_steps}
    with pytest.raises(ScheduleError, match=r"`kinds`, `decision_steps`, `decide` and `check`, .* got Half\."):
        apply_blockdance(build_pixart(), type("Half", (), members)(), num_inference_steps=4)
    members |= {"decide": RecordingDecider.decide, "check": RecordingDecider.check}
    apply_blockdance(build_pixart(), type("Whole", (), members)(), num_inference_steps=4)


@pytest.mark.parametrize("compile_first", [True, False])
def test_compiled_without_breaks_in_two_graphs(family: tuple[nn.Module, Any], compile_first: bool) -> None:
    torch._dynamo.reset()
    model, make = family
    inputs, plan = make(2), BlockDanceConfig(reuse_range=(0, 1), boundary=1)
    with apply_blockdance(model, plan, num_inference_steps=4):
        eager = [call(model, inputs, timestep) for timestep in (0.9, 0.7, 0.5, 0.3)]
    counter = torch._dynamo.testing.CompileCounter()
    if compile_first:
        model.compile(fullgraph=True, backend=counter)
    apply_blockdance(model, plan, num_inference_steps=4)
    if not compile_first:
        model.compile(fullgraph=True, backend=counter)
    for _ in range(3):
        compiled = [call(model, inputs, timestep) for timestep in (0.9, 0.7, 0.5, 0.3)]
    assert counter.frame_count == 2
    for one, two in zip(eager, compiled, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-5)
