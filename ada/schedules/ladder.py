"""A ladder: a short list of schedules that save more and more, laid as a tree that decisions in stages walk."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blockdance import BlockDanceError, Reuse, ReuseSchedule, ScheduleError
from blockdance.schedule import LETTERS


class LadderError(BlockDanceError):
    """A ladder that cannot be used, or a file that holds none."""


@dataclass(frozen=True)
class Ladder:
    """Schedules to choose from, and when it is chosen.

    Rungs that take the same actions up to a step are one node of a tree until that step. After each decision step one of the
    node's continuations up to the next decision step is chosen; after the last one, a rung.

    Args:
        actions: int64 `(rungs, num_steps)`; the first computes every step.
        kinds: the kinds of reuse that the actions refer to.
        decision_steps: the steps after which it is decided, ascending; every rung computes up to the first.

    Raises:
        LadderError: says which of these does not hold.
    """

    actions: Tensor
    kinds: tuple[Reuse, ...]
    decision_steps: tuple[int, ...]

    def __post_init__(self) -> None:
        check_kinds(self.kinds)
        try:
            ReuseSchedule(self.actions, self.kinds)
        except ScheduleError as error:
            raise LadderError(f"A rung is no schedule: {error}") from error
        if self.actions[0].any():
            raise LadderError("The first rung must compute every step.")
        steps = self.decision_steps
        if not steps or list(steps) != sorted(set(steps)) or steps[0] < 2 or steps[-1] >= self.num_steps - 1:
            raise LadderError(
                f"`decision_steps` must ascend from 2 or more to less than the last of the {self.num_steps} steps; got {steps}."
            )
        early = self.actions[:, : steps[0] + 1].any(1).nonzero().flatten().tolist()
        if early:
            raise LadderError(f"Rung {early[0]} reuses before the first decision, which comes after step {steps[0]}.")

    @property
    def num_steps(self) -> int:
        return self.actions.shape[1]

    def __len__(self) -> int:
        return len(self.actions)

    def schedule(self, rungs: Tensor) -> ReuseSchedule:
        """The schedule of chosen rungs, int64 `(images,)`."""
        return ReuseSchedule(self.actions.to(rungs.device)[rungs], self.kinds)

    def saved(self, reuse_costs: Sequence[float]) -> Tensor:
        """Share of the denoising compute that each rung saves: float64 `(rungs,)`.

        Args:
            reuse_costs: cost of a step under each kind of reuse, relative to a computed one.
        """
        per_action = torch.tensor([0.0, *(1 - cost for cost in reuse_costs)], dtype=torch.float64)
        return per_action[self.actions].mean(1)

    def nodes(self, stage: int) -> Tensor:
        """For every rung its node at a decision: the first rung that acts alike until then. int64 `(rungs,)`."""
        done = self.actions[:, : self.decision_steps[stage] + 1].tolist()
        first: dict[tuple[int, ...], int] = {}
        return torch.tensor([first.setdefault(tuple(row), rung) for rung, row in enumerate(done)])

    def for_steps(self, num_steps: int) -> "Ladder":
        """The ladder for another number of steps: as many reuses in proportion, spread alike.

        Rungs, and decisions, keep their order and their number, and rungs that act alike until a decision still do, so that a policy's
        outputs keep their meaning; with few steps some rungs coincide.

        Raises:
            LadderError: too few steps for the decisions.
        """
        if num_steps == self.num_steps:
            return self
        steps: tuple[int, ...] = ()
        for step in self.decision_steps:
            earliest = steps[-1] + 1 if steps else 2
            steps += (max(earliest, round((step + 1) * num_steps / self.num_steps) - 1),)
        if steps[-1] >= num_steps - 1:
            raise LadderError(
                f"The ladder's {len(steps)} decisions need {len(steps) + 3} steps or more, and this generation has {num_steps}. Give it "
                "more steps, or generate without reuse."
            )
        rows: list[Tensor] = []
        nodes = torch.stack([self.nodes(stage) for stage in range(len(steps))], 1).tolist()
        for rung, actions in enumerate(self.actions):
            done = torch.zeros(steps[0] + 1, dtype=torch.int64)
            for step, node in zip(steps, nodes[rung], strict=True):
                done = rows[node][: step + 1] if node < rung else done
            rows.append(stretch(actions, num_steps, done))
        return replace(self, actions=torch.stack(rows), decision_steps=steps)

    def distinct(self) -> "Ladder":
        """The ladder without rungs that are the schedule of an earlier one, as few steps make them."""
        rungs = self.actions.tolist()
        return replace(self, actions=self.actions[[rungs.index(rung) == place for place, rung in enumerate(rungs)]])

    def to_dict(self) -> dict[str, Any]:
        """The ladder as JSON: a string per rung, a letter an action."""
        rungs = ["".join(LETTERS[action] for action in rung) for rung in self.actions.tolist()]
        return {"kinds": [asdict(kind) for kind in self.kinds], "decision_steps": list(self.decision_steps), "rungs": rungs}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Ladder":
        """The ladder that `to_dict` gave.

        Raises:
            LadderError: it is none.
        """
        try:
            actions = torch.tensor([[LETTERS.index(action) for action in rung] for rung in content["rungs"]])
            kinds, steps = tuple(Reuse(**kind) for kind in content["kinds"]), tuple(content["decision_steps"])
        except (KeyError, TypeError, ValueError) as error:
            raise LadderError(f"This is no ladder: {error!r}. It needs `kinds`, `decision_steps` and `rungs`.") from error
        if len(set(content["rungs"])) < len(content["rungs"]):
            raise LadderError("Two rungs are the same schedule.")
        return cls(actions, kinds, steps)

    def save(self, path: Path) -> None:
        """Writes a JSON file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Ladder":
        """Reads a file that `save` wrote.

        Raises:
            FileNotFoundError: there is none.
            LadderError: it holds no ladder.
        """
        file = Path(path)
        if not file.is_file():
            raise FileNotFoundError(f"No ladder in {file}. `python -m ada search` makes one for a model.")
        try:
            return cls.from_dict(json.loads(file.read_text(encoding="utf-8")))
        except ValueError as error:
            raise LadderError(f"{file} holds no ladder: {error}") from error


def check_kinds(kinds: Sequence[Reuse]) -> None:
    """Checks that schedules with these kinds of reuse can be written.

    Raises:
        LadderError: there are more kinds than letters.
    """
    if len(kinds) >= len(LETTERS):
        raise LadderError(
            f"At most {len(LETTERS) - 1} kinds of reuse can be on offer; got {len(kinds)}. Offer fewer boundaries or weights."
        )


def stretch(rung: Tensor, num_steps: int, done: Tensor) -> Tensor:
    """A schedule for another number of steps, int64 `(num_steps,)`: the k-th of its n reuses stands where the curve of the
    reuses so far, drawn over the share of the steps, reaches (k − ½)/n of its height.

    Args:
        rung: int64 `(steps,)`.
        num_steps: number of steps wanted.
        done: int64 `(steps,)`, what its first steps do already: it is decided about the others.
    """
    old, first, placed = len(rung), len(done), int((done > 0).sum())
    places = rung.nonzero().flatten().tolist()
    count = min(round(len(places) * num_steps / old), placed + num_steps - 1 - first)
    actions = torch.cat([done, torch.zeros(num_steps - first, dtype=torch.int64)])
    for number in range(placed, count):
        position = (number + 0.5) / count * len(places) - 0.5
        # beyond the first and the last reuse, the curve goes on as it does between the nearest two
        low = min(int(max(position, 0)), max(len(places) - 2, 0))
        high = min(low + 1, len(places) - 1)
        place = places[low] + (places[high] - places[low]) * (position - low)
        wanted = min(max(round((place + 0.5) * num_steps / old - 0.5), first), num_steps - 2)
        free = [step for step in range(first, num_steps - 1) if not actions[step]]
        actions[min(free, key=lambda step: (abs(step - wanted), step))] = rung[places[low if position - low < 0.5 else high]]
    return actions
