"""Sampling loops that are not diffusers', called as its pipelines are."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class SamplingLoop:
    """A transformer with a sampling loop of its own, in the place of a pipeline.

        register_layout(STDiT, BlockLayout(lists=("blocks",), latents="x", cond_last=False))
        pipeline = FrozenPipeline(SamplingLoop(model, sample, num_inference_steps=30), num_inference_steps=30)

    Args:
        transformer: the model, of a class that has a layout (`blockdance.register_layout`).
        sample: `(prompts, generators) -> output`: one prompt and one generator per image, which its noise is to come from alone; the
            output has one row per image. A loop that can take other numbers of steps has a third argument, `num_inference_steps`.
        num_inference_steps: the number of steps of a `sample` that always takes the same; None where it is told.
        scheduler: the scheduler that it follows, if any: it tells steps and noise levels, as diffusers' do.

    Raises:
        ValueError: neither `sample` is told the number of steps nor is it given here, or both.
    """

    def __init__(
        self,
        transformer: nn.Module,
        sample: Callable[..., Tensor],
        num_inference_steps: int | None = None,
        scheduler: Any = None,
    ) -> None:
        self.transformer, self.sample, self.scheduler = transformer, sample, scheduler
        self.num_inference_steps = num_inference_steps
        is_told = "num_inference_steps" in inspect.signature(sample).parameters
        if is_told == (num_inference_steps is not None):
            raise ValueError(
                "A sampling loop either takes `num_inference_steps` as an argument, or always takes as many: then say how many in "
                "`SamplingLoop(…, num_inference_steps=…)`."
            )

    def __call__(
        self,
        prompt: Sequence[Any],
        num_inference_steps: int,
        generator: Sequence[torch.Generator],
        output_type: str = "pt",
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        """One call, as a pipeline's.

        Raises:
            ValueError: another number of steps than the loop's.
        """
        if self.num_inference_steps is None:
            return (self.sample(prompt, generator, num_inference_steps=num_inference_steps),)
        if num_inference_steps != self.num_inference_steps:
            raise ValueError(
                f"This sampling loop always takes {self.num_inference_steps} steps; {num_inference_steps} were asked for. Ask for as "
                "many, or give it an argument `num_inference_steps`."
            )
        return (self.sample(prompt, generator),)

    def to(self, device: torch.device | str) -> "SamplingLoop":
        """Moves the transformer; `sample` makes its inputs where the transformer is."""
        self.transformer.to(device)
        return self
