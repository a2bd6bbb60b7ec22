"""The ComfyUI nodes, on a stub of ComfyUI's interface around a small model with PixArt's blocks. ComfyUI itself is not here."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import build_pixart_pipeline, scramble
from diffusers.models.attention import BasicTransformerBlock
from ladders import build_ladder
from torch import Tensor, nn

from ada.policy import BaseModel, LadderPolicy
from blockdance import BlockDanceError, BlockLayout, UnsupportedModelError, find_layout, register_layout

STEPS = 8


# --- what is used of ComfyUI ---


@dataclass
class Executor:
    """Calls the wrappers from the first to the last, then what they are around."""

    original: Callable[..., Any]
    class_obj: Any
    wrappers: list[Callable[..., Any]]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.wrappers:
            return self.original(*args, **kwargs)
        return self.wrappers[0](Executor(self.original, self.class_obj, self.wrappers[1:]), *args, **kwargs)


@dataclass
class Patcher:
    """A model patcher."""

    model: Any
    model_options: dict[str, Any] = field(default_factory=lambda: {"transformer_options": {}})
    wrappers: dict[str, dict[str, list[Callable[..., Any]]]] = field(default_factory=dict)

    def clone(self) -> "Patcher":
        wrappers = {kind: {key: list(one) for key, one in keys.items()} for kind, keys in self.wrappers.items()}
        return Patcher(self.model, {"transformer_options": dict(self.model_options["transformer_options"])}, wrappers)

    def add_wrapper_with_key(self, kind: str, key: str, wrapper: Callable[..., Any]) -> None:
        self.wrappers.setdefault(kind, {}).setdefault(key, []).append(wrapper)

    def get_wrappers(self, kind: str, key: str) -> list[Callable[..., Any]]:
        return self.wrappers.get(kind, {}).get(key, [])

    def get_all_wrappers(self, kind: str) -> list[Callable[..., Any]]:
        return [wrapper for one in self.wrappers.get(kind, {}).values() for wrapper in one]


class PixArtMS(nn.Module):
    """With the interface of ComfyUI's class of this name: blocks that take one stream."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.time, self.final = nn.Linear(4, 16), nn.Linear(1, 16), nn.Linear(16, 4)
        self.blocks = nn.ModuleList(BasicTransformerBlock(16, 2, 8, cross_attention_dim=12) for _ in range(4))
        self.calls = [0] * 4
        for place, block in enumerate(self.blocks):
            block.register_forward_hook(lambda *_, place=place: self.calls.__setitem__(place, self.calls[place] + 1))

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor, **kwargs: Any) -> Tensor:
        hidden = self.embed(x.flatten(2).transpose(1, 2)) + self.time(timesteps[:, None])[:, None]
        for block in self.blocks:
            hidden = block(hidden, encoder_hidden_states=context)
        return self.final(hidden).transpose(1, 2).view_as(x)


PixArtMS.__module__ = "comfy.ldm.pixart.pixartms"


@dataclass
class Guider:
    """Euler or Heun, guided; the two prompts in one call, or in two where `split` says so of a step."""

    model_patcher: Patcher
    split: Callable[[int], bool] = lambda step: False
    heun: bool = False

    def __post_init__(self) -> None:
        self.model_options = self.model_patcher.model_options

    def sample(self, noise: Tensor, sigmas: Tensor) -> Tensor:
        wrappers = self.model_patcher.get_all_wrappers("outer_sample")
        with torch.no_grad():
            return Executor(self.outer_sample, self, wrappers)(noise, torch.zeros_like(noise), None, sigmas)

    def outer_sample(self, noise: Tensor, latent_image: Tensor, sampler: Any, sigmas: Tensor) -> Tensor:
        x = noise
        for step, (sigma, after) in enumerate(pairwise(sigmas)):
            slope = self.predict(x, sigma, step)
            if self.heun and after > 0:
                slope = (slope + self.predict(x + (after - sigma) * slope, after, step)) / 2
            x = x + (after - sigma) * slope
        return x

    def predict(self, x: Tensor, sigma: Tensor, step: int) -> Tensor:
        parts = {"good": 1.0, "bad": -1.0}
        groups = [["good"], ["bad"]] if self.split(step) else [["bad", "good"]]
        out: dict[str, Tensor] = {}
        for names in groups:
            context = torch.cat([torch.full((len(x), 3, 12), parts[name]) for name in names])
            options = {"sigmas": sigma.expand(1), "uuids": names, "sample_sigmas": None}
            inputs = (torch.cat([x] * len(names)), sigma.expand(len(context)), None, context, None, options)
            wrappers = self.model_patcher.get_all_wrappers("apply_model")
            out |= zip(
                names, Executor(self.apply_model, self.model_patcher.model, wrappers)(*inputs).chunk(len(names)), strict=True
            )
        return out["bad"] + 3 * (out["good"] - out["bad"])

    def apply_model(self, x: Tensor, t: Tensor, concat: Any, context: Tensor, control: Any, transformer_options: Any) -> Tensor:
        model = self.model_patcher.model.diffusion_model
        return model(x, t, context=context, control=control, transformer_options=transformer_options)


@pytest.fixture(scope="module")
def nodes() -> Iterator[ModuleType]:
    extension = ModuleType("comfy.patcher_extension")
    extension.WrappersMP = SimpleNamespace(OUTER_SAMPLE="outer_sample", APPLY_MODEL="apply_model")  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "comfy", ModuleType("comfy"))
        patch.setitem(sys.modules, "comfy.patcher_extension", extension)
        import examples.comfyui

        yield examples.comfyui
        for name in [name for name in sys.modules if name.startswith("examples.comfyui")]:
            del sys.modules[name]


@pytest.fixture
def patcher() -> Patcher:
    return Patcher(SimpleNamespace(diffusion_model=scramble(PixArtMS())))


SIGMAS = torch.linspace(1, 0, STEPS + 1)
NOISE = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
SETTINGS = {"interval": 2, "start": 0.25, "end": 1.0, "boundary": 2}  # of steps 2 to 7, the odd ones reuse


# --- the nodes ---


def test_a_model_goes_in_and_comes_out_and_reuses(nodes: ModuleType, patcher: Patcher) -> None:
    node = nodes.NODE_CLASS_MAPPINGS["BlockDance"]
    assert set(node.INPUT_TYPES()["required"]) == {"model", *SETTINGS}
    (clone,) = getattr(node(), node.FUNCTION)(patcher, **SETTINGS)
    calls = patcher.model.diffusion_model.calls

    plain = Guider(patcher).sample(NOISE, SIGMAS)
    assert calls == [8] * 4
    reused = Guider(clone).sample(NOISE, SIGMAS)
    assert calls == [8 + 5, 8 + 5, 8 + 5, 8 + 8]
    assert 1e-4 < (reused - plain).abs().max() < plain.abs().max()
    torch.testing.assert_close(Guider(clone).sample(NOISE, SIGMAS), reused, rtol=0, atol=0)
    calls[:] = [0] * 4
    assert torch.equal(Guider(patcher).sample(NOISE, SIGMAS), plain), "the model that went in is as it was"
    assert calls == [8] * 4


def test_prompts_in_calls_of_their_own_give_the_same(nodes: ModuleType, patcher: Patcher) -> None:
    (clone,) = nodes.BlockDanceNode().patch(patcher, **SETTINGS)
    together = Guider(clone).sample(NOISE, SIGMAS)
    calls = patcher.model.diffusion_model.calls
    calls[:] = [0] * 4
    torch.testing.assert_close(Guider(clone, split=lambda step: True).sample(NOISE, SIGMAS), together, rtol=1e-4, atol=1e-4)
    assert calls == [10, 10, 10, 16]


def test_prompts_that_change_calls_midway_are_not_mixed_up(nodes: ModuleType, patcher: Patcher) -> None:
    """From step 5 on memory allows one prompt a call: step 5, which was to reuse, computes, and 7 reuses."""
    (clone,) = nodes.BlockDanceNode().patch(patcher, **SETTINGS)
    calls = patcher.model.diffusion_model.calls
    Guider(clone, split=lambda step: step >= 5).sample(NOISE, SIGMAS)
    assert calls[0] == 1 + 1 + 1 + 0 + 1 + 2 + 2 + 0


def test_a_sampler_that_calls_twice_a_step_reuses_in_both(nodes: ModuleType, patcher: Patcher) -> None:
    (clone,) = nodes.BlockDanceNode().patch(patcher, **SETTINGS)
    calls = patcher.model.diffusion_model.calls
    plain = Guider(patcher, heun=True).sample(NOISE, SIGMAS)
    assert calls == [15] * 4
    calls[:] = [0] * 4
    reused = Guider(clone, heun=True).sample(NOISE, SIGMAS)
    assert calls[3] == 15
    assert calls[0] == 15 - 2 * 3, "both calls at the noise levels of steps 3, 5 and 7"
    assert (reused - plain).abs().max() < plain.abs().max()


def save_policy(folder: Path) -> None:
    """One that has learnt nothing, for models of four blocks."""
    base_model = vars(BaseModel.of(build_pixart_pipeline().transformer))
    policy = LadderPolicy(
        base_model=dict(base_model), ladder=build_ladder().to_dict(), reuse_costs=[0.3, 0.6], sight_width=40, num_components=3
    )
    policy.save_pretrained(folder)


def test_a_policys_rung_is_one_schedule(nodes: ModuleType, patcher: Patcher, tmp_path: Path) -> None:
    """At 0.83 the ladder's rung is `00010010`."""
    save_policy(tmp_path)
    (clone,) = nodes.PolicyScheduleNode().patch(patcher, str(tmp_path), 0.83)
    Guider(clone).sample(NOISE, SIGMAS)
    assert patcher.model.diffusion_model.calls == [6, 6, 6, 8]
    del patcher.model.diffusion_model.blocks[3]
    with pytest.raises(UnsupportedModelError, match="with 4 blocks; this model has 3"):
        Guider(clone).sample(NOISE, SIGMAS)


def test_a_layout_that_the_user_has_told_stays(nodes: ModuleType, patcher: Patcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the table is told where there is none."""
    monkeypatch.setattr("blockdance.layouts.lookup._REGISTERED", {})
    nodes.BlockDanceNode().patch(patcher, **SETTINGS)
    assert find_layout(patcher.model.diffusion_model).latents == "x"
    own = BlockLayout(lists=("blocks",), latents="x", timestep="timesteps", one_image=True)
    register_layout(PixArtMS, own)
    nodes.BlockDanceNode().patch(patcher, **SETTINGS)
    assert find_layout(patcher.model.diffusion_model) is own


def test_what_it_cannot_do_is_said(nodes: ModuleType, patcher: Patcher) -> None:
    (clone,) = nodes.BlockDanceNode().patch(patcher, **SETTINGS)
    clone.model_options["transformer_options"]["easycache"] = object()
    with pytest.raises(ValueError, match="EasyCache or LazyCache is on"):
        Guider(clone).sample(NOISE, SIGMAS)
    with pytest.raises(BlockDanceError, match="comes from another BlockDance node"):
        nodes.BlockDanceNode().patch(clone, **SETTINGS)
    derived = Patcher(SimpleNamespace(diffusion_model=type("Derived", (PixArtMS,), {})()))
    with pytest.raises(UnsupportedModelError, match=r"knows the base class of Derived.*register_layout\(Derived"):
        nodes.BlockDanceNode().patch(derived, **SETTINGS)
    unknown = Patcher(SimpleNamespace(diffusion_model=nn.Linear(1, 1)))
    with pytest.raises(UnsupportedModelError, match="knows no block layout of Linear"):
        nodes.BlockDanceNode().patch(unknown, **SETTINGS)


def test_a_sampling_that_takes_no_step_gives_what_it_gives_plain(
    nodes: ModuleType, patcher: Patcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One noise level is none to go to; and a sampler may return before it calls the model."""
    (clone,) = nodes.BlockDanceNode().patch(patcher, **SETTINGS)
    save_policy(tmp_path)
    (by_policy,) = nodes.PolicyScheduleNode().patch(patcher, str(tmp_path), 0.83)
    for patched in (patcher, clone, by_policy):
        assert torch.equal(Guider(patched).sample(NOISE, SIGMAS[:1]), NOISE)
    monkeypatch.setattr(Guider, "outer_sample", lambda self, noise, *_: noise)
    assert torch.equal(Guider(clone).sample(NOISE, SIGMAS), NOISE)


def test_an_exception_leaves_the_model_plain(nodes: ModuleType, patcher: Patcher) -> None:
    (clone,) = nodes.BlockDanceNode().patch(patcher, **SETTINGS)
    plain = Guider(patcher).sample(NOISE, SIGMAS)

    def interrupt(step: int) -> bool:
        if step == 4:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        Guider(clone, split=interrupt).sample(NOISE, SIGMAS)
    assert torch.equal(Guider(patcher).sample(NOISE, SIGMAS), plain)
