"""Models from outside diffusers, told to BlockDance with `register_layout`."""

from types import SimpleNamespace

import pytest
import torch
from conftest import scramble
from stdit import LAYOUT, STDiT
from torch import Tensor, nn

from blockdance import (
    BlockDanceConfig,
    BlockLayout,
    Reuse,
    ReuseExecutor,
    ReuseSchedule,
    UnsupportedModelError,
    apply_blockdance,
    find_layout,
    register_layout,
)
from blockdance.layouts import SHARED_ARGUMENTS

STEPS = 10


def sample(model: nn.Module, z: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """Open-Sora's IDDPM loop: rows [cond, uncond], guidance 7.0, and calls of `model.forward`."""
    with torch.no_grad():
        for timestep in torch.linspace(0.95, 0.05, STEPS):
            combined = torch.cat([z, z])
            cond, uncond = model.forward(combined, timestep.expand(len(combined)), y, mask=mask).chunk(2)
            z = z - 0.1 * (uncond + 7.0 * (cond - uncond))
    return z


def open_sora_inputs(model: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Three videos whose prompts have two, five and three tokens."""
    z, y = torch.randn(3, 4, 3, 2, 2), torch.randn(6, 5, 16)
    return z, y, (torch.arange(5) < torch.tensor([[2], [5], [3]])).long()


def test_an_open_sora_model_in_one_line() -> None:
    model = scramble(STDiT())
    with pytest.raises(UnsupportedModelError, match=r"its module lists: blocks.*register_layout\(STDiT"):
        apply_blockdance(model)

    register_layout(STDiT, LAYOUT)

    z, y, mask = open_sora_inputs(model)
    plain = sample(model, z, y, mask)
    config = BlockDanceConfig(interval=2, reuse_range=(0.25, 0.95), boundary=2)
    with apply_blockdance(model, config, num_inference_steps=STEPS) as handle:
        together = sample(model, z, y, mask)
        actions = handle.report().actions
        assert actions.tolist() == config.schedule(STEPS, 4).actions.tolist() * 3
        assert actions.sum() == 3 * 4
    assert not torch.allclose(together, plain, atol=1e-3)
    assert torch.equal(sample(model, z, y, mask), plain)


def test_videos_that_take_different_actions_keep_their_own_masks() -> None:
    register_layout(STDiT, LAYOUT)
    model = scramble(STDiT())
    z, y, mask = open_sora_inputs(model)
    rows = torch.tensor([[0] * STEPS, [0, 0, 1, 1, 0, 1, 0, 0, 1, 0], [0, 0, 0, 2, 0, 2, 1, 0, 0, 0]])
    kinds = (Reuse(boundary=2), Reuse(boundary=3, order=1))
    with apply_blockdance(model, ReuseSchedule(rows, kinds), num_inference_steps=STEPS):
        together = sample(model, z, y, mask)
    for video in range(3):
        alone = [z[video : video + 1], y[video::3], mask[video : video + 1]]
        with apply_blockdance(model, ReuseSchedule(rows[video : video + 1], kinds), num_inference_steps=STEPS):
            torch.testing.assert_close(together[video : video + 1], sample(model, *alone), rtol=1e-4, atol=1e-5)


class AddOne(nn.Module):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states + 1


class ChangingTransformer(nn.Module):
    """Adds in place, between its blocks, what a ControlNet would add."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(AddOne() for _ in range(3))
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        for block in self.blocks:
            hidden_states = block(hidden_states)
            hidden_states += self.scale
        return hidden_states


@pytest.mark.parametrize("order", [0, 1])
def test_outputs_that_the_model_changes_in_place_are_kept_as_they_were(order: int) -> None:
    register_layout(ChangingTransformer, BlockLayout(lists=("blocks",), changes_outputs=True))
    model = ChangingTransformer()
    scheduler = SimpleNamespace(timesteps=torch.tensor([4.0, 3.0, 2.0, 1.0]))
    pipeline = SimpleNamespace(transformer=model, scheduler=scheduler)
    schedule = ReuseSchedule(torch.tensor([[0, 0, 1, 1]]), (Reuse(boundary=1, order=order),))
    with apply_blockdance(pipeline, schedule), torch.no_grad():
        outputs = [float(model(torch.zeros(1, 1), timestep)) for timestep in scheduler.timesteps]
    assert outputs == [33.0] * 4


def test_a_layout_belongs_to_a_class_and_not_to_its_name() -> None:
    """A copy of a class of diffusers is told how to take over the layout; another model of that name is not mistaken for it."""
    copied = type("PixArtTransformer2DModel", (ChangingTransformer,), {})
    other = type("STDiT", (nn.Module,), {})()
    register_layout(STDiT, BlockLayout(lists=("blocks",), latents="x"))
    with pytest.raises(UnsupportedModelError, match=r'is not diffusers\' class.*LAYOUTS\["PixArtTransformer2DModel"\]'):
        find_layout(type("PixArtTransformer2DModel", (nn.Module,), {})())
    with pytest.raises(UnsupportedModelError, match="knows no block layout of STDiT"):
        find_layout(other)
    layout = BlockLayout(lists=("blocks",), changes_outputs=True)
    register_layout(ChangingTransformer, layout)
    assert find_layout(copied()) is layout, "a subclass has its base's layout"


class Masked(nn.Module):
    """Adds a mask with one row per image to latents with one row per guidance branch and image, and frequencies to all."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(AddOne() for _ in range(2))

    def forward(self, hidden_states: Tensor, mask: Tensor, img_ids: Tensor) -> Tensor:
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return hidden_states + mask.repeat(len(hidden_states) // len(mask), 1) + img_ids


def test_a_layout_says_which_arguments_have_other_rows() -> None:
    """`img_ids` is shared in diffusers; here it has a row per latent, and the mask one per image."""
    model = Masked()
    layout = BlockLayout(
        lists=("blocks",),
        shared_arguments=SHARED_ARGUMENTS - {"img_ids"},
        per_image_arguments=frozenset({"mask"}),
    )
    executor = ReuseExecutor(model, layout, (Reuse(boundary=1),))
    state = executor.new_state(num_images=3, num_branches=2)
    latents, ids = torch.zeros(6, 1), torch.arange(6.0)[:, None] * 100
    inputs = {"hidden_states": latents, "mask": torch.tensor([[10.0], [20], [30]]), "img_ids": ids}
    plain = model(**inputs)
    executor.run(model, (), inputs, state, [0, 0, 0], 1.0)
    assert torch.equal(executor.run(model, (), inputs, state, [0, 1, 0], 0.5), plain)
