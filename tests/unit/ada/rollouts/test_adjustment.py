"""`benchmarks/adjustment.py` fits what it says, to what it says."""

import torch
from ladders import CASES, actions_of, build_frozen
from torch import Tensor

from ada.schedules import Ladder
from benchmarks.adjustment import Error, descent, fitted, least_squares
from blockdance import Reuse, ReuseSchedule

LAST = 3
LADDER = Ladder(actions_of("00000000", "00010100"), (Reuse(boundary=LAST), Reuse(boundary=LAST, order=1, weight=0.5)), (2, 4))
PROMPTS, SEEDS = [case.prompt for case in CASES], [case.seed for case in CASES]


def test_an_image_beside_its_twin() -> None:
    """What it is fitted to is what the plain model gives for the image's own latents; fitted to nothing, images stay as they are."""
    pipeline = build_frozen(max_rows=None)
    plain: list[Tensor] = []
    with pipeline.transformer.norm_out.register_forward_pre_hook(lambda module, inputs: plain.append(inputs[0])):
        pipeline.generate(PROMPTS, SEEDS, LADDER.schedule(torch.tensor([0])))
    seen: list[tuple[Tensor, Tensor]] = []

    def nothing(injected: Tensor, computed: Tensor, error: Error) -> tuple[Tensor, Tensor]:
        seen.append((injected, computed))
        return torch.ones(2, 1, 1, injected.shape[-1]), torch.zeros(2, 1, 1, injected.shape[-1])

    adjustment = fitted(pipeline, LADDER, 1, CASES, nothing)
    assert list(adjustment.steps) == [3, 5]
    injected, computed = (some.flatten(0, 1) for some in seen[0])
    torch.testing.assert_close(injected, plain[2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(computed, plain[3], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(seen[1][1].flatten(0, 1), plain[5], rtol=1e-3), "by then its latents are others"
    schedule = ReuseSchedule(LADDER.actions[1:], LADDER.kinds)
    with adjustment.on():
        adjusted = pipeline.generate(PROMPTS, SEEDS, schedule).images
    assert torch.equal(adjusted, pipeline.generate(PROMPTS, SEEDS, schedule).images)


def test_least_squares_are_those_of_every_channel() -> None:
    """Against torch's solver, one channel at a time."""
    torch.manual_seed(0)
    injected, noise = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4)
    computed = 0.5 * injected + 2 + 0.1 * noise
    scale, shift = least_squares(injected, computed, lambda outputs, wanted: outputs.sum())
    for branch in range(2):
        for channel in range(4):
            given, wanted = (some[branch, ..., channel].reshape(-1, 1) for some in (injected, computed))
            found = torch.linalg.lstsq(torch.cat([given, torch.ones_like(given)], 1), wanted).solution.flatten()
            pair = torch.stack([scale[branch, 0, 0, channel], shift[branch, 0, 0, channel]])
            torch.testing.assert_close(pair, found, rtol=1e-4, atol=1e-5)


def test_the_error_is_that_of_the_guided_prediction() -> None:
    """It is what the model's own head makes of both outputs; and both ways undo a scale and a shift."""
    pipeline = build_frozen(max_rows=None)
    model, guidance = pipeline.transformer, pipeline.arguments["guidance_scale"]
    checked: list[float] = []
    levels: list[Tensor] = []

    def spy(injected: Tensor, computed: Tensor, error: Error) -> tuple[Tensor, Tensor]:
        torch.manual_seed(1)
        outputs = computed + torch.randn_like(computed)
        assert float(error(computed, computed)) == 0
        checked.append(float(error(outputs, computed)))
        shift, scale = (model.scale_shift_table[None] + levels[-1][:1, None]).chunk(2, 1)

        def prediction(some: Tensor) -> Tensor:
            made: Tensor = model.proj_out(torch.nn.LayerNorm(some.shape[-1], 1e-6, False)(some) * (1 + scale) + shift)
            return guidance * made[1] + (1 - guidance) * made[0]

        checked.append(float((prediction(outputs) - prediction(computed)).square().mean()))
        distorted = computed * (1 + 0.3 * torch.randn(computed.shape[-1])) + 0.3 * torch.randn(computed.shape[-1])
        found = [fit(distorted, computed, error) for fit in (least_squares, descent)]
        exact, near = (float(error(distorted * scale + shift, computed)) for scale, shift in found)
        assert exact < 1e-6
        assert near < 0.1 * float(error(distorted, computed))
        return least_squares(injected, computed, error)

    with model.adaln_single.register_forward_hook(lambda module, inputs, output: levels.append(output[1])):
        fitted(pipeline, LADDER, 1, CASES, spy)
    torch.testing.assert_close(checked[::2], checked[1::2], rtol=1e-4, atol=0)
