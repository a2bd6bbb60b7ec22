"""How much do features change from step to step? Measures it, and chooses boundary, range and N, or a Block Caching schedule."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from blockdance.call_shape import CallShape
from blockdance.cost import ForwardCost, cost_of
from blockdance.errors import BlockDanceError, ScheduleError
from blockdance.layouts import BlockLayout, blocks_of, find_layout, parameter_names, pipeline_parts
from blockdance.schedule import BlockDanceConfig, ReuseSchedule, block_caching, step_range
from blockdance.steps import Location, StepTracker

DEFAULT_TOLERANCE = 0.1
INTERVALS = (2, 3, 4)
"""N of BlockDance-N (section 4.2)."""


@dataclass(frozen=True)
class FeatureChange:
    """How every block's output differs from the step before; NaN at the first step. Guidance branches of an image are averaged.

    Args:
        cosine: float32 `(images, num_steps, num_blocks)`, cosine similarity of the outputs (BlockDance, figure 2).
        output_change: the same shape, relative L1 change ‖o_s − o_{s−1}‖₁ / ‖o_s‖₁ of the outputs.
        block_change: the same shape, relative L1 change of what the block adds, output minus input (Block Caching, section 3.2).
        cost: MACs of one forward call.
    """

    cosine: Tensor
    output_change: Tensor
    block_change: Tensor
    cost: ForwardCost

    def __post_init__(self) -> None:
        assert self.cosine.shape == self.output_change.shape == self.block_change.shape

    @property
    def num_steps(self) -> int:
        return self.cosine.shape[1]

    def propose(self, tolerance: float, intervals: Sequence[int] = INTERVALS, reuse_end: float = 0.95) -> BlockDanceConfig:
        """The BlockDance-N that saves most while what it injects stays within a tolerance.

        A reuse step injects the output of the last computed step; by the triangle inequality it is off by at most the sum of the
        changes since. Every boundary, N and start of the range is tried; the mean over images is compared with the tolerance.

        Args:
            tolerance: largest relative L1 error of the injected features.
            intervals: the N to choose from.
            reuse_end: end of the range, as a fraction of the steps.

        Raises:
            ScheduleError: nothing stays within the tolerance.
        """
        changes = self.output_change.mean(0).double()
        best, best_saved = None, 0.0
        for boundary in range(changes.shape[1]):
            for interval in intervals:
                start = self._earliest_start(changes[:, boundary], interval, tolerance, reuse_end)
                if start is None:
                    continue
                config = BlockDanceConfig(interval=interval, boundary=boundary, reuse_range=(start, reuse_end))
                schedule = config.schedule(self.num_steps, changes.shape[1])
                saved = float(self.cost.compute_saved(schedule.actions, schedule.kinds))
                if saved > best_saved:
                    best, best_saved = config, saved
        if best is None:
            smallest = float(changes[1:].min())
            raise ScheduleError(
                f"No schedule keeps the injected features within a tolerance of {tolerance:g}: the smallest relative change of any "
                f"block between two steps is {smallest:.3g}. Allow more, or take more denoising steps."
            )
        return best

    def _earliest_start(self, changes: Tensor, interval: int, tolerance: float, end: float) -> float | None:
        """The earliest start of the range from which no reuse step exceeds the tolerance, as a fraction of the steps."""
        _, last = step_range(self.num_steps, (0.0, end))
        earliest = None
        for first in range(last - 2, 0, -1):
            errors = [
                float(changes[step - (step - first) % interval + 1 : step + 1].sum())
                for step in range(first, last)
                if (step - first) % interval
            ]
            if max(errors) > tolerance:
                break
            earliest = first / self.num_steps
        return earliest

    def block_caching(self, threshold: float) -> ReuseSchedule:
        """Block Caching's automatic schedule for a threshold δ, from the mean over images."""
        return block_caching(self.block_change.mean(0), threshold)


class FeatureRecorder:
    """Records while a pipeline generates; a context manager. It keeps one step's outputs, whatever the number of steps.

    Args:
        pipeline: a pipeline with a `transformer`, which is not compiled (its blocks' hooks would not be seen).
        num_images: images of the generation, guidance branches not counted.

    Raises:
        UnsupportedModelError: no block layout is known.
    """

    def __init__(self, pipeline: Any, num_images: int) -> None:
        self._transformer, _ = pipeline_parts(pipeline)
        self._layout: BlockLayout = find_layout(self._transformer)
        self._blocks = blocks_of(self._transformer, self._layout)
        self._tracker = StepTracker(pipeline, None, self._layout.timestep_rises)
        self._parameters = parameter_names(self._transformer)
        self._num_images = num_images
        self._previous: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
        self._sums = torch.empty(0)
        self._counts = torch.empty(0)
        self._place: Location | None = None
        self._num_rows = 0
        self._shape: CallShape | None = None
        self._hooks = ExitStack()

    def __enter__(self) -> "FeatureRecorder":
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
        current = self._rows(output if is_tensor else output[index])
        added = current - self._rows(before)
        key, step = (self._place.branch, position), self._place.step
        if key in self._previous:
            last, last_added = self._previous[key]
            for statistic, values in enumerate(
                (cosine_similarity(current, last), _relative_change(current, last), _relative_change(added, last_added))
            ):
                self._sums[statistic, :, step, position] += values.view(-1, self._num_images).mean(0).cpu()
            self._counts[step] += 1 / len(self._blocks)
        self._previous[key] = (current, added)

    def _rows(self, output: Tensor) -> Tensor:
        """The output as float32 `(rows, features)`."""
        turned = output.detach().transpose(0, self._layout.batch_dim)
        rows = turned.float().reshape(self._num_rows, -1)
        return rows.clone() if self._layout.changes_outputs else rows


def measure_feature_change(pipeline: Any, prompts: Sequence[str], **options: Any) -> FeatureChange:
    """Measures feature changes over one generation of each prompt.

    Args:
        pipeline: a pipeline with a `transformer`, not compiled.
        prompts: a few prompts.
        options: passed to the pipeline, such as `num_inference_steps` or `generator`.
    """
    with FeatureRecorder(pipeline, len(prompts) * options.get("num_images_per_prompt", 1)) as recorder:
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
