"""ComfyUI nodes: a model in, the same model out, which reuses block outputs while it is sampled."""

import logging
from collections.abc import Callable
from typing import Any

from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from blockdance import BlockDanceConfig, BlockDanceError, Plan, UnsupportedModelError, apply_blockdance, find_layout
from blockdance.layouts import block_stack

from .layouts import tell_layout

logger = logging.getLogger(__name__)
KEY = "blockdance"
PlanMaker = Callable[[int, int], Plan]
"""The plan for a number of denoising steps and of blocks."""


class Scheduler:
    """The noise levels of one sampling, as BlockDance reads them off a scheduler.

    Args:
        sigmas: as the sampler is given them, the last one being where it ends.
    """

    def __init__(self, sigmas: Tensor) -> None:
        self.sigmas = sigmas
        self.timesteps = sigmas[:-1].float().cpu()
        self.step_index = 0

    def locate(self, sigma: Tensor) -> None:
        """Sets the step of a call: the nearest one, for samplers that call the model between two levels."""
        self.step_index = int((self.timesteps - float(sigma.max())).abs().argmin())


class Sampling:
    """One sampling, as BlockDance sees it: a pipeline with a transformer and a scheduler.

    Args:
        model: the diffusion model.
        sigmas: noise levels.
        plan: what reuses.
    """

    def __init__(self, model: nn.Module, sigmas: Tensor, plan: Plan) -> None:
        self.transformer, self.scheduler = model, Scheduler(sigmas)
        self._plan = plan
        self._step = 0
        # the parts of the prompt in every call of this step, and of the step before
        self._parts: list[list[Any]] = []
        self._parts_before: list[list[Any]] = []

    def run(self, execute: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Samples under the plan. (A method, because BlockDance finds the pipeline of a call by the `self` on its stack.)"""
        with apply_blockdance(self, self._plan) as self._handle:
            output = execute(*args, **kwargs)
            if self._handle.has_run:
                logger.info("%s", self._handle.report())
            else:
                logger.warning("BlockDance reused nothing: no call of this sampling reached the model that it is attached to.")
        return output

    def before_call(self, options: dict[str, Any]) -> None:
        """Tells the step of a call; drops what is kept where the parts of the prompt come in other batches than at the step before.

        ComfyUI gathers as many parts (positive, negative, regions) into one call as fit the memory that is free at the moment.
        """
        self.scheduler.locate(options["sigmas"])
        if self.scheduler.step_index != self._step:
            self._step, self._parts_before, self._parts = self.scheduler.step_index, self._parts, []
        parts = list(options["uuids"])
        place = len(self._parts)
        if place < len(self._parts_before) and self._parts_before[place] != parts:
            self._handle.invalidate()
        self._parts.append(parts)


def patched(model: Any, make_plan: PlanMaker) -> Any:
    """A clone of a model patcher whose samplings reuse.

    Args:
        model: ComfyUI's `ModelPatcher`.
        make_plan: gives the plan when the number of steps is known.

    Raises:
        BlockDanceError: a node before this one has made its samplings reuse.
        UnsupportedModelError: the layout of this model's blocks is not known.
    """
    if model.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY):
        raise BlockDanceError("This model comes from another BlockDance node: both would skip the same work. Use one of them.")
    tell_layout(model.model.diffusion_model)

    running: list[Sampling] = []

    def around_sampling(executor: Any, *args: Any, **kwargs: Any) -> Any:
        guider = executor.class_obj
        if "easycache" in guider.model_options.get("transformer_options", {}):
            raise ValueError("EasyCache or LazyCache is on for this model too: both would skip the same work. Use one of them.")
        transformer, sigmas = guider.model_patcher.model.diffusion_model, args[3]
        if len(sigmas) < 2:
            return executor(*args, **kwargs)  # no step to take, and no plan for none
        num_blocks = len(block_stack(transformer, find_layout(transformer)))
        running.append(Sampling(transformer, sigmas, make_plan(len(sigmas) - 1, num_blocks)))
        try:
            return running[-1].run(executor, *args, **kwargs)
        finally:
            running.pop()

    def around_call(executor: Any, *args: Any, **kwargs: Any) -> Any:
        if running:
            running[-1].before_call(args[5])  # transformer_options, which `apply_model` passes on by place
        return executor(*args, **kwargs)

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, around_sampling)
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, around_call)
    return clone


class ModelNode:
    """Model in, model out: what ComfyUI reads of a node's class. The subclass's docstring is what users see."""

    CATEGORY = "advanced/model"
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    DESCRIPTION: str | None

    def __init_subclass__(cls) -> None:
        cls.DESCRIPTION = cls.__doc__


class BlockDanceNode(ModelNode):
    """BlockDance-N: of every N steps in a range, the first computes and the others start after a boundary block."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  # ComfyUI's name
        share = {"min": 0.0, "max": 1.0, "step": 0.01}
        return {
            "required": {
                "model": ("MODEL",),
                "interval": ("INT", {"default": 2, "min": 2, "max": 8}),
                "start": ("FLOAT", share | {"default": 0.4}),
                "end": ("FLOAT", share | {"default": 0.95}),
                "boundary": (
                    "INT",
                    {"default": -1, "min": -1, "max": 999, "tooltip": "Last block that is skipped; -1: 20 of 28."},
                ),
            }
        }

    def patch(self, model: Any, interval: int, start: float, end: float, boundary: int) -> tuple[Any]:
        config = BlockDanceConfig(interval=interval, reuse_range=(start, end), boundary=None if boundary < 0 else boundary)
        return (patched(model, lambda num_steps, num_blocks: config),)


class PolicyScheduleNode(ModelNode):
    """One level of a policy's ladder, the same schedule for every image: the policy itself decides in diffusers pipelines only."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  # ComfyUI's name
        return {
            "required": {
                "model": ("MODEL",),
                "policy": ("STRING", {"default": "", "tooltip": "Folder or Hub id."}),
                "compute": ("FLOAT", {"default": 0.75, "min": 0.05, "max": 1.0, "step": 0.01}),
            }
        }

    def patch(self, model: Any, policy: str, compute: float) -> tuple[Any]:
        # not at the top: the other node needs torch and diffusers only
        from ada.export import static_schedule
        from ada.policy import AdaPolicy

        loaded = AdaPolicy.from_pretrained(policy)

        def make_plan(num_steps: int, num_blocks: int) -> Plan:
            if loaded.base_model.num_blocks != num_blocks:
                raise UnsupportedModelError(
                    f"The policy {policy} is for {loaded.base_model.transformer} with {loaded.base_model.num_blocks} blocks; this "
                    f"model has {num_blocks}."
                )
            return static_schedule(loaded, compute, num_steps)

        return (patched(model, make_plan),)
