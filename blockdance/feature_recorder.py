"""Measures how much features change from step to step, while a pipeline generates."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from blockdance.attachment import refuse_steered
from blockdance.call_shape import CallShape
from blockdance.cost import cost_of
from blockdance.errors import BlockDanceError, UnsupportedModelError
from blockdance.layouts import BlockLayout, blocks_of, find_layout, parameter_names
from blockdance.schedule import BlockDanceConfig
from blockdance.similarity import DEFAULT_TOLERANCE, FeatureChange
from blockdance.steps import Location, StepTracker
from blockdance.targets import transformers_of

MAX_POSITIONS = 4096
"""Positions (tokens) of a row that are compared: of more, so many are taken, evenly spread, so that memory does not grow with them."""


class FeatureRecorder:
    """Records while a pipeline generates; a context manager. It keeps `MAX_POSITIONS` of each block's last output at most, in the
    model's precision, whatever the number of steps and the resolution.

    Args:
        pipeline: a pipeline with a `transformer`, which is not compiled (its blocks' hooks would not be seen).
        num_images: images of the generation, guidance branches not counted.
        component: name of the transformer, where the pipeline has several.

    Raises:
        UnsupportedModelError: no block layout is known, or the pipeline has several transformers and none is named.
        BlockDanceError: on entering, BlockDance is on for the transformer.
    """

    def __init__(self, pipeline: Any, num_images: int, component: str | None = None) -> None:
        transformers = transformers_of(pipeline, component)
        if len(transformers) > 1:
            raise UnsupportedModelError(
                f"{type(pipeline).__name__} has several transformers, whose features are measured one by one: give `component`, one of "
                f"{', '.join(transformers)}."
            )
        (self._transformer,) = transformers.values()
        self._pipeline = pipeline
        self._layout: BlockLayout = find_layout(self._transformer)
        self._blocks = blocks_of(self._transformer, self._layout)
        self._tracker = StepTracker(pipeline, None, self._layout.timestep_rises)
        self._parameters = parameter_names(self._transformer)
        self._num_images = num_images
        self._previous: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}  # input and output
        self._newest: tuple[Any, Any] = (None, None)
        self._sums = torch.empty(0)
        self._counts = torch.empty(0)
        self._place: Location | None = None
        self._num_rows = 0
        self._shape: CallShape | None = None
        self._hooks = ExitStack()

    def __enter__(self) -> "FeatureRecorder":
        refuse_steered(self._transformer, self._pipeline)
        located = self._transformer.register_forward_pre_hook(self._locate, with_kwargs=True)
        self._hooks.callback(located.remove)
        for position, block in enumerate(self._blocks):
            observer = partial(self._observe, position, parameter_names(block))
            observed = block.register_forward_hook(observer, with_kwargs=True)
            self._hooks.callback(observed.remove)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._hooks.close()
        self._previous.clear()
        self._newest = (None, None)

    def result(self) -> FeatureChange:
        """What was recorded.

        Raises:
            BlockDanceError: fewer than two steps were seen.
        """
        if self._shape is None or not self._counts[1:].any():
            raise BlockDanceError(
                "No two denoising steps of the transformer's blocks were seen. Run the pipeline inside the recorder, with two or "
                "more steps and the transformer not compiled."
            )
        cost = cost_of(self._transformer, self._layout, self._shape)
        cosine, output_change, block_change = self._sums / self._counts[:, None]
        return FeatureChange(cosine, output_change, block_change, cost)

    def _locate(self, transformer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = dict(zip(self._parameters, args, strict=False)) | kwargs
        if not self._layout.is_step(inputs):
            self._place = None
            return
        self._place = self._tracker.locate(inputs.get(self._layout.timestep), None)
        self._num_rows = self._layout.num_rows(inputs)
        if self._num_rows % self._num_images:
            raise BlockDanceError(
                f"The model was called with {self._num_rows} rows, which is no multiple of the {self._num_images} images of this "
                "generation. Give the number of prompts times `num_images_per_prompt`."
            )
        if self._place.is_new_generation:
            self._previous.clear()
            self._sums = torch.zeros(3, self._num_images, self._tracker.num_steps, len(self._blocks))
            self._counts = torch.zeros(self._tracker.num_steps)
        if self._shape is None:
            self._shape = CallShape.of(inputs, self._layout.timestep)

    def _observe(
        self, position: int, names: list[str], block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        if self._place is None:
            return
        index, streams = self._layout.image_index, self._layout.streams
        is_tensor = isinstance(output, Tensor)
        name = names[0] if is_tensor else streams[index]
        before = kwargs[name] if name in kwargs else args[names.index(name)]
        raw = output if is_tensor else output[index]
        # most blocks are given what the one before them gave: it is kept once
        is_kept = before is self._newest[0] and not self._layout.changes_outputs
        given, current = self._newest[1] if is_kept else self._rows(before), self._rows(raw)
        self._newest = raw, current
        key, step = (self._place.branch, position), self._place.step
        if key in self._previous:
            for statistic, values in enumerate(_compare(given, current, *self._previous[key])):
                self._sums[statistic, :, step, position] += values.view(-1, self._num_images).mean(0).cpu()
            self._counts[step] += 1 / len(self._blocks)
        self._previous[key] = (given, current)

    def _rows(self, output: Tensor) -> Tensor:
        """What is compared of an output: `(rows, positions, channels)`."""
        turned = output.detach().transpose(0, self._layout.batch_dim)
        rows = turned.reshape(self._num_rows, -1, turned.shape[-1])
        if rows.shape[1] > MAX_POSITIONS:
            chosen = torch.linspace(0, rows.shape[1] - 1, MAX_POSITIONS, dtype=torch.float64).round().long()
            return rows.index_select(1, chosen.to(rows.device))
        return rows.clone() if self._layout.changes_outputs else rows


def _compare(given: Tensor, current: Tensor, last_given: Tensor, last: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cosine similarity and relative change of the outputs, and relative change of what was added: each `(rows,)`, float32."""
    given, current, last_given, last = (part.float().flatten(1) for part in (given, current, last_given, last))
    added, last_added = current - given, last - last_given
    return cosine_similarity(current, last), _relative_change(current, last), _relative_change(added, last_added)


def measure_feature_change(
    pipeline: Any, prompts: Sequence[str], *, component: str | None = None, **options: Any
) -> FeatureChange:
    """Measures feature changes over one generation of each prompt.

    Args:
        pipeline: a pipeline with a transformer, not compiled.
        prompts: a few prompts.
        component: name of the transformer, where the pipeline has several.
        options: passed to the pipeline, such as `num_inference_steps` or `generator`.

    Raises:
        BlockDanceError: BlockDance is on for the transformer, or fewer than two steps were seen.
    """
    with FeatureRecorder(pipeline, len(prompts) * options.get("num_images_per_prompt", 1), component) as recorder:
        pipeline(list(prompts), **options)
    return recorder.result()


def calibrate(
    pipeline: Any, prompts: Sequence[str], *, tolerance: float = DEFAULT_TOLERANCE, **options: Any
) -> BlockDanceConfig:
    """Chooses boundary, range and N for a pipeline by measurement: see `FeatureChange.propose`.

    Args:
        pipeline, prompts, options: as `measure_feature_change` takes them.
        tolerance: largest relative L1 error of the injected features.
    """
    return measure_feature_change(pipeline, prompts, **options).propose(tolerance)


def _relative_change(current: Tensor, previous: Tensor) -> Tensor:
    """‖current − previous‖₁ / ‖current‖₁ of every row."""
    return (current - previous).abs().sum(1) / current.abs().sum(1)
