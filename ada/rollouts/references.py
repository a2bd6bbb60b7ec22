"""What training needs of a case again and again: its reference, and the transformer's outputs before anything is decided."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ada.rollouts.driver import GivenSchedules
from ada.rollouts.pipeline import FrozenPipeline
from ada.rollouts.table import Case
from ada.rollouts.tape import Record, Tape
from blockdance import Recorded, Reuse
from blockdance.trees import fit_tokens, map_tensors, tensors_of

REFERENCE = "reference"

KEPT_STEPS = 2
"""Of how many recorded steps, the last ones, it is kept what their blocks left: those that caches and a policy look back on."""


class TapedSteps:
    """A generation whose first steps are replayed where they are recorded, and recorded where they are not.

    Args:
        records: of every image of the batch; images of one case may have one record.
        num_steps: how many steps are recorded.
        forms: what an output looks like, and what is kept beside it; it grows.
    """

    def __init__(self, records: Sequence[Record], num_steps: int, forms: dict[Any, Any]) -> None:
        distinct = {id(record): record for record in records}
        places = {key: place for place, key in enumerate(distinct)}
        self._records, self._rows = list(distinct.values()), [places[id(record)] for record in records]
        self._num_steps, self._forms = num_steps, forms

    def replay(self, step: int, branch: str) -> Recorded | None:
        """What is known of all images, or None where one of them lacks it, or where its form was not seen yet."""
        form = self._forms.get((branch, self._keeps(step)))
        names = [_name(step, branch, number) for number, _ in enumerate(tensors_of(form))]
        if not names or not all(name in record for record in self._records for name in names):
            return None
        each = iter(names)
        replayed: Recorded = map_tensors(lambda empty: self._batch(next(each), empty.device), form)
        return replayed

    def _batch(self, name: str, device: torch.device) -> Tensor:
        """A tensor for the whole batch, from each distinct record once."""
        parts = [record[name] for record in self._records]
        if len({part.shape for part in parts}) > 1:
            # some models pad tokens to the longest sequence of a call
            tokens = max(part.shape[2] for part in parts)
            parts = [fit_tokens(part.flatten(0, 1), tokens).unflatten(0, part.shape[:2]) for part in parts]
        stacked = torch.stack(parts, 1).to(device)
        return (stacked if len(parts) == len(self._rows) else stacked[:, self._rows]).flatten(0, 2)

    def record(self, step: int, branch: str, recorded: Recorded) -> None:
        """Keeps each image's rows `(branches, parts of a row, …)` of every tensor."""
        wanted = recorded if self._keeps(step) else Recorded(recorded.output)
        num_images = len(self._rows)
        if step >= self._num_steps or not _has_rows(wanted, num_images):
            return
        num_branches = len(next(tensors_of(wanted.output))) // num_images
        self._forms[branch, self._keeps(step)] = map_tensors(lambda leaf: leaf.new_empty(0), wanted)
        for number, leaf in enumerate(tensors_of(wanted)):
            name, rows = _name(step, branch, number), leaf.unflatten(0, (num_branches, num_images, -1))
            for image, place in enumerate(self._rows):
                if name not in self._records[place]:
                    self._records[place][name] = _own(rows[:, image].cpu())

    def _keeps(self, step: int) -> bool:
        return step >= self._num_steps - KEPT_STEPS


class References:
    """Makes and keeps the reference of every case, the outputs of its steps up to the one after which a policy first looks, and what the
    last of them leave in the caches: all that schedules of the case have in common.

    Args:
        pipeline: the frozen pipeline.
        tape: keeps them.
        kinds: the kinds of reuse that rollouts take; a policy sees what is kept for the first one's boundary.
        decision_step: the step after which a policy first looks.
    """

    def __init__(self, pipeline: FrozenPipeline, tape: Tape, kinds: Sequence[Reuse], decision_step: int) -> None:
        self._pipeline, self._tape = pipeline, tape
        self._kinds, self._decision_step = tuple(kinds), decision_step
        self._forms: dict[Any, Any] = {}

    def of(self, cases: Sequence[Case]) -> list[Record]:
        """The records of cases. One that is on no tape is made in a call of its own: batches round otherwise, and a record must not
        depend on the company in which it was made, or a run that is resumed would not end as one that was not."""
        if not self._forms and cases:  # a new process over a tape that has them all must know what it replays
            self._make(cases[0])
        return [self._tape.get(case) or self._make(case) for case in cases]

    def _make(self, case: Case) -> Record:
        record: Record = {}
        actions = torch.zeros(1, self._pipeline.num_inference_steps, dtype=torch.int64)
        # as a decider's it keeps what a policy sees, and in the caches of rollouts
        plan = GivenSchedules(actions, self._kinds, (self._decision_step,))
        generated = self._pipeline.generate([case.prompt], [case.seed], plan, recording=self.steps([record]))
        record[REFERENCE] = _own(generated.images[0].cpu())
        self._tape.put(case, record)
        return record

    def steps(self, records: Sequence[Record]) -> TapedSteps:
        """A generation of images that have these records."""
        return TapedSteps(records, self._decision_step + 1, self._forms)

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
