"""What training needs of a case again and again: its reference, and the transformer's outputs before anything is decided."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ada.rollouts.pipeline import FrozenPipeline
from ada.rollouts.table import Case
from ada.rollouts.tape import Record, Tape
from blockdance import full_compute
from blockdance.trees import map_tensors, tensors_of

REFERENCE = "reference"


class TapedSteps:
    """A generation whose first steps are replayed where they are recorded, and recorded where they are not.

    Args:
        records: of every image of the batch; images of one case may have one record.
        num_steps: how many steps are recorded.
        forms: by branch, what an output looks like; it grows.
    """

    def __init__(self, records: Sequence[Record], num_steps: int, forms: dict[str, Any]) -> None:
        self._records, self._num_steps, self._forms = records, num_steps, forms

    def replay(self, step: int, branch: str) -> Any | None:
        """The output for all images, or None where one of them lacks it, or where the form of the output was not seen yet."""
        form = self._forms.get(branch)
        names = [_name(step, branch, number) for number, _ in enumerate(tensors_of(form))]
        if not names or not all(name in record for record in self._records for name in names):
            return None
        leaves = iter(torch.stack([record[name] for record in self._records], 1).flatten(0, 1) for name in names)
        return map_tensors(lambda empty: next(leaves).to(empty.device), form)

    def record(self, step: int, branch: str, output: Any) -> None:
        """Keeps each image's rows `(branches, …)` of every tensor of the output."""
        if step >= self._num_steps or not _has_rows(output, len(self._records)):
            return
        self._forms[branch] = map_tensors(lambda leaf: leaf.new_empty(0), output)
        for number, leaf in enumerate(tensors_of(output)):
            name, rows = _name(step, branch, number), leaf.unflatten(0, (-1, len(self._records))).cpu()
            for image, record in enumerate(self._records):
                if name not in record:
                    record[name] = _own(rows[:, image])


class References:
    """Makes and keeps the reference of every case and the outputs of its first steps.

    Args:
        pipeline: the frozen pipeline.
        tape: keeps them.
        num_steps: how many steps are recorded: all up to the last but one before a policy first looks, see `blockdance.Recording`.
    """

    def __init__(self, pipeline: FrozenPipeline, tape: Tape, num_steps: int) -> None:
        self._pipeline, self._tape, self._num_steps = pipeline, tape, num_steps
        self._forms: dict[str, Any] = {}

    def of(self, cases: Sequence[Case]) -> list[Record]:
        """The records of cases. One that is on no tape is made in a call of its own: batches round otherwise, and a record must not
        depend on the company in which it was made, or a run that is resumed would not end as one that was not."""
        return [self._tape.get(case) or self._make(case) for case in cases]

    def _make(self, case: Case) -> Record:
        record: Record = {}
        plan = full_compute(1, self._pipeline.num_inference_steps)
        generated = self._pipeline.generate([case.prompt], [case.seed], plan, recording=self.steps([record]))
        record[REFERENCE] = _own(generated.images[0].cpu())
        self._tape.put(case, record)
        return record

    def steps(self, records: Sequence[Record]) -> TapedSteps:
        """A generation of images that have these records."""
        return TapedSteps(records, self._num_steps, self._forms)

    def images(self, records: Sequence[Record]) -> Tensor:
        """The references `(records, …)`, on the pipeline's device."""
        return torch.stack([record[REFERENCE] for record in records]).to(self._pipeline.device)


def _own(tensor: Tensor) -> Tensor:
    """A copy that lies in memory as it will when it comes from a file."""
    return tensor.clone(memory_format=torch.contiguous_format)


def _name(step: int, branch: str, number: int) -> str:
    return f"{step}/{branch}/{number}"


def _has_rows(output: Any, num_images: int) -> bool:
    """Whether all that an output holds is tensors with a row per image and branch; some models give lists of images."""
    if isinstance(output, Tensor):
        return output.ndim > 0 and len(output) % num_images == 0
    if isinstance(output, dict):
        return all(_has_rows(leaf, num_images) for leaf in output.values())
    return output is None or (isinstance(output, tuple) and all(_has_rows(leaf, num_images) for leaf in output))
