"""The frozen pipeline that policies are trained over, and how it is called: any pipeline of diffusers, or a loop of one's own."""

import copy
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from ada.processor import fast_linear
from ada.rollouts.fingerprints import described, weights_digest
from ada.rollouts.loop import SamplingLoop
from ada.rollouts.placement import DeviceMap, Offload, check_placement, device_of, load_spread, place
from ada.rollouts.sharing import shared_components
from blockdance import (
    BlockDanceHandle,
    BlockDanceReport,
    ForwardCost,
    Plan,
    Recording,
    Reuse,
    apply_blockdance,
    find_layout,
    full_compute,
)

EMBEDDED = "checkpoints/emoji-dit"
"""The model that comes with a clone of the repository."""
EMBEDDED_ARGUMENTS = {"guidance_scale": 4.0, "max_sequence_length": 24, "use_resolution_binning": False, "clean_caption": False}
"""Of its call, as policies are trained over it (`configs/default.yaml`)."""
Dtype = Literal["float32", "bfloat16", "float16"]
Inputs = Callable[[Sequence[Any]], Mapping[str, Any]]
"""What a call takes of its prompts, one per image: arguments by name, each with one row (or element) per prompt."""


OWN_ARGUMENTS = {
    "num_inference_steps": "the setting of this name",
    "output_type": "the setting of this name",
    "generator": "the seed of each case",
    "return_dict": "training",
}
"""Arguments of a pipeline's call that are not among the further ones, and what gives them."""


@dataclass(frozen=True)
class Generated:
    """What one call of the pipeline gave.

    Args:
        images: `(images, 3, height, width)` in [0, 1], `(videos, frames, 3, height, width)`, or whatever else the pipeline puts out.
        handle: of what was on during the call.
    """

    images: Tensor
    handle: BlockDanceHandle

    @property
    @torch.inference_mode()
    def report(self) -> BlockDanceReport:
        """What reuse did. MACs are counted when it is asked for: that may take as long as some steps of the transformer."""
        return self.handle.report()

    @property
    @torch.inference_mode()
    def cost(self) -> ForwardCost:
        """MACs of the last forward call, counted when they are asked for."""
        return self.handle.cost()

    def reuse_costs(self, kinds: Sequence[Reuse]) -> list[float]:
        """Cost of a step under each kind of reuse, relative to a computed one."""
        costs = self.cost.per_action(kinds)
        return (costs[1:] / costs[0]).tolist()


class FrozenPipeline:
    """A stock pipeline with fixed weights. It is no `nn.Module`, so that neither checkpoints nor distributed training see its
    parameters.

    Args:
        model: folder or Hub id of a diffusers pipeline, a pipeline, or a `SamplingLoop`.
        num_inference_steps: denoising steps.
        arguments: further arguments of the pipeline's call, such as its guidance scale, size or number of frames.
        prompt_argument: what the call names its prompts; by default `prompt`, or `class_labels` where it has no `prompt`.
        output_type: what the pipeline is asked for: `pt` (images as tensors) or `latent`.
        max_rows: most rows that the transformer is given at once (images times guidance branches).
        max_images: most prompts that are encoded, and images (videos) that are decoded at once.
        dtype: precision of everything frozen, where `model` is loaded; what is given as an object keeps its own.
        inputs: what the call takes of its prompts, where that is more than one argument: an image to start from, a control image,
            embeddings made before. It stands in the place of `prompt_argument`.
        offload: what waits in main memory until it is needed, where not everything fits the device at once: `model`, one whole model at
            a time, or `sequential`, layer by layer, which is slow.
        device_map: spreads a transformer that fits no device over several, as accelerate does (`auto`, `balanced`, or a device for every
            part by its name); what else there is in the pipeline is moved as a whole. For one process: each would take all devices.

    Raises:
        FileNotFoundError: `model` looks like a folder that is not there.
        ValueError: an argument that the pipeline's call does not have, or that is not `arguments`' to give; or a placement or a
            precision that cannot be had.
    """

    def __init__(
        self,
        model: str | DiffusionPipeline | SamplingLoop = EMBEDDED,
        num_inference_steps: int = 20,
        arguments: Mapping[str, Any] | None = None,
        prompt_argument: str | None = None,
        output_type: str = "pt",
        max_rows: int | None = 64,
        dtype: Dtype = "float32",
        max_images: int | None = 16,
        inputs: Inputs | None = None,
        offload: Offload = "none",
        device_map: DeviceMap | None = None,
    ) -> None:
        check_placement(model, offload, device_map)
        if dtype != "float32" and not isinstance(model, str):
            raise ValueError(
                f"A pipeline that is given has its precision: leave out `dtype`, for one that is loaded; got {dtype}."
            )
        self.offload: Offload = offload
        self.model: str = model if isinstance(model, str) else getattr(model, "name_or_path", None) or type(model).__name__
        self.pipeline: Any = load_pipeline(model, getattr(torch, dtype), device_map) if isinstance(model, str) else model
        self.num_inference_steps = num_inference_steps
        self.arguments = dict(arguments or {})
        self.inputs = inputs
        self.output_type = output_type
        self.max_rows, self.max_images = max_rows, max_images
        self.prompt_argument = prompt_argument or self._usual_prompt_argument
        self._check_arguments()
        self.layout = find_layout(self.transformer)

    @property
    def _usual_prompt_argument(self) -> str:
        parameters = inspect.signature(type(self.pipeline).__call__).parameters
        return "prompt" if "prompt" in parameters else "class_labels"

    def _check_arguments(self) -> None:
        parameters = inspect.signature(type(self.pipeline).__call__).parameters
        own = OWN_ARGUMENTS | ({} if self.inputs else {self.prompt_argument: "the data"})
        taken = [f"`{name}`, which {own[name]} gives" for name in self.arguments if name in own]
        if taken:
            raise ValueError(f"`arguments` must not hold {', nor '.join(taken)}.")
        unknown = sorted({*([] if self.inputs else [self.prompt_argument]), *self.arguments} - set(parameters))
        if unknown:
            raise ValueError(
                f"{type(self.pipeline).__name__} takes no argument {', '.join(f'`{name}`' for name in unknown)} in its call. It "
                f"takes {', '.join(name for name in parameters if name != 'self')}."
            )

    @property
    def transformer(self) -> Any:
        return self.pipeline.transformer

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return device_of(self.pipeline)

    def to(self, device: torch.device | str) -> "FrozenPipeline":
        """Makes it compute on a device: moves it there, or what is needed when it is needed (`offload`)."""
        place(self.pipeline, device, self.offload)
        return self

    @property
    def num_blocks(self) -> int:
        return sum(len(self.transformer.get_submodule(path)) for path in self.layout.lists)

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Any],
        seeds: Sequence[int],
        plan: Plan,
        groups: Sequence[int] | None = None,
        recording: Recording | None = None,
    ) -> Generated:
        """One call of the pipeline under a plan.

        Args:
            prompts: one per image: texts, or class labels, or whatever `inputs` understands.
            seeds: of each image's noise, which depends on its seed alone.
            plan: what reuses.
            groups: a number for each image; equal ones have the same prompt and noise, and share what they can.
            recording: replays the transformer's outputs of some steps.

        Raises:
            ScheduleError: the call passed the plan by.
        """
        with (
            fast_linear(self.device),
            shared_components(self.pipeline, self.max_images),
            apply_blockdance(
                self.pipeline,
                plan,
                num_inference_steps=self.num_inference_steps,
                groups=groups,
                max_rows=self.max_rows,
                recording=recording,
            ) as handle,
        ):
            with self._let_go_if_stopped():
                output = self.pipeline(**self.call_arguments(prompts, seeds))
            images = output[0] if isinstance(output[0], Tensor) else torch.as_tensor(output[0])
        if not handle.has_run:
            handle.report()  # says why
        return Generated(images.float(), handle)

    @contextmanager
    def _let_go_if_stopped(self) -> Iterator[None]:
        """Puts models that wait in main memory back there also where the call was stopped before it did."""
        try:
            yield
        except BaseException:
            if isinstance(self.pipeline, DiffusionPipeline):
                self.pipeline.maybe_free_model_hooks()  # type: ignore[attr-defined]
            raise

    def call_arguments(self, prompts: Sequence[Any], seeds: Sequence[int]) -> dict[str, Any]:
        """What the pipeline's call is given, by name.

        Args:
            prompts, seeds: as in `generate`.

        Raises:
            TypeError: `inputs` gives an argument that is not its own.
        """
        told = {self.prompt_argument: list(prompts)} if self.inputs is None else self.inputs(prompts)
        return dict(
            num_inference_steps=self.num_inference_steps,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type=self.output_type,
            return_dict=False,
            **self.arguments | dict(told),
        )

    def reuse_costs(self, kinds: Sequence[Reuse], prompt: Any) -> list[float]:
        """Cost of a step under each kind of reuse, relative to a computed one, at a generation of any prompt."""
        return self.generate([prompt], [0], full_compute(1, self.num_inference_steps)).reuse_costs(kinds)

    def with_settings(self, num_inference_steps: int | None = None, **arguments: Any) -> "FrozenPipeline":
        """The same pipeline, called with another number of steps, or with other arguments."""
        other = copy.copy(self)
        if num_inference_steps is not None:
            other.num_inference_steps = num_inference_steps
        other.arguments = self.arguments | arguments
        other._check_arguments()
        return other

    @cached_property
    def _weights(self) -> str:
        """The digest of the transformer's weights, which never change; reading billions of them takes a while."""
        return weights_digest(self.transformer)

    def fingerprint(self) -> dict[str, Any]:
        """What its images depend on besides prompt and seed: class, weights, sampler, arguments, how it is told prompts."""
        scheduler = getattr(self.pipeline, "scheduler", None)
        return {
            "pipeline": type(self.pipeline).__name__,
            "weights": self._weights,
            "scheduler": None if scheduler is None else [type(scheduler).__name__, _settings_of(scheduler)],
            "num_inference_steps": self.num_inference_steps,
            "arguments": described(self.arguments),
            "output_type": self.output_type,
            **({"sample": described(self.pipeline.sample)} if isinstance(self.pipeline, SamplingLoop) else {}),
            **({} if self.inputs is None else {"inputs": described(self.inputs)}),
            # the usual name is left out, as in tables that are there
            **({} if self.prompt_argument == self._usual_prompt_argument else {"prompt_argument": self.prompt_argument}),
        }


def _settings_of(scheduler: Any) -> dict[str, Any]:
    """A scheduler's settings, without the note of which of them its file left to defaults: diffusers makes that of a set, whose order is
    another in every process."""
    return {name: value for name, value in scheduler.config.items() if name != "_use_default_values"}


class _LongCaptions(logging.Filter):
    """Shows once that captions are longer than an encoder reads: every rung of every caption would say so again."""

    has_told = False

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.getMessage().startswith("The following part of your input was truncated"):
            return True
        is_first, self.has_told = not self.has_told, True
        return is_first


_LONG_CAPTIONS = _LongCaptions()


def load_pipeline(model: str, dtype: torch.dtype, device_map: DeviceMap | None = None) -> Any:
    """Loads a diffusers pipeline, frozen and silent; with a `device_map`, its transformer spread over devices.

    Raises:
        FileNotFoundError: the path is not there, or holds no pipeline; or a Hub id cannot be had.
    """
    folder = Path(model)
    if not (folder / "model_index.json").is_file() and (folder.exists() or model.startswith((".", "/", "checkpoints/"))):
        raise FileNotFoundError(
            f"No diffusers pipeline in {folder} (it has no model_index.json). Give the folder of a saved pipeline or a Hub id; the "
            "embedded model is checkpoints/emoji-dit in a clone of the repository, and paths are relative to the folder you run in."
        )
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    for handler in logging.getLogger("diffusers").handlers:
        handler.addFilter(_LONG_CAPTIONS)
    try:
        spread = {} if device_map is None else load_spread(model, dtype, device_map)
        pipeline = DiffusionPipeline.from_pretrained(model, dtype=dtype, **spread)
    except OSError as error:
        raise FileNotFoundError(
            f"The pipeline {model} could not be loaded: {str(error).partition(chr(10))[0]} Check the Hub id, the network and your "
            "access to it, or give the folder of a saved pipeline."
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    for component in pipeline.components.values():
        if isinstance(component, nn.Module):
            component.eval().requires_grad_(False)
    return pipeline
