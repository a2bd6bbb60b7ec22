"""The static search: the best schedule at every saving, by what it does to images, and a ladder made of them."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ada.processes import num_processes, work_off
from ada.progress import Advance, progress
from ada.rewards import WeightedReward
from ada.rewards.damage import VISIBLE_DISTANCE, bounded_damage
from ada.rollouts import Case, FrozenPipeline, measure, name_of, open_table
from ada.schedules import Ladder, LadderError
from ada.schedules.ladder import check_kinds
from blockdance import Reuse

Schedule = tuple[int, ...]
SCALES = (0.1, 0.3, 1.0, 3.0)
"""Multiples of the visible damage at which damage is bounded; their mean lets every image count, the robust and the sensitive."""
DECIDED_AT = (0.2, 0.25, 0.3, 0.4, 0.55, 0.7)
"""Shares of the steps at which a ladder's policy decides, beside the first at which it may."""
EARLY = 0.4
"""Share of the steps after which an image that reused early may have few reuses left."""
ROUNDS = 3
"""Most rounds of moves from one schedule."""
SCREENED_ON, FINALISTS = 3, 4
"""Candidates run on every third caption first, and so many of them on all."""


class ScheduleSearch:
    """Local search over schedules, every result kept on disk: one that was stopped goes on where it was and ends with the same ladder.

    Args:
        pipeline: the frozen pipeline.
        reward: quality Q beside the reference; what is lost is the damage.
        cases: captions with noise, of the kind that users send.
        kinds: the kinds of reuse on offer.
        visible: the damage that a person just sees.
        first: share of the steps before which nothing reuses.
        folder: where tables are kept, those of training too; None for memory alone.
        batch_size: captions that run in one call of the pipeline.
        processes: how many run such calls at the same time, as in `ada.rollouts.Collector`.
        report: called with a line now and then.

    Raises:
        ValueError: `visible` is not positive, or there are too many kinds.
    """

    def __init__(
        self,
        pipeline: FrozenPipeline,
        reward: WeightedReward,
        cases: Sequence[Case],
        kinds: Sequence[Reuse],
        visible: float = VISIBLE_DISTANCE,
        first: float = 0.15,
        folder: Path | None = None,
        batch_size: int = 4,
        processes: int | None = None,
        report: Callable[[str], None] = print,
    ) -> None:
        if visible <= 0:
            raise ValueError(f"The visible damage must be positive; got {visible}.")
        check_kinds(kinds)
        self.pipeline, self.reward, self.cases, self.kinds = pipeline, reward, list(cases), tuple(kinds)
        self.visible, self.batch_size, self._report = visible, batch_size, report
        self.processes = num_processes(pipeline.device, processes)
        self.num_steps = pipeline.num_inference_steps
        self.open = range(max(3, round(first * self.num_steps)), self.num_steps - 1)
        self.table = open_table(folder, pipeline, reward, self.kinds)
        self._part = self.cases[::SCREENED_ON]
        self._rest = [case for place, case in enumerate(self.cases) if place % SCREENED_ON]

    def score(self, schedule: Schedule, cases: Sequence[Case] | None = None) -> float:
        """What is minimised: bounded damage, mean over cases, by default all, and `SCALES`."""
        damage = torch.cat([self.table.values(case, [name_of(schedule)], "damage") for case in cases or self.cases])
        return float(torch.stack([bounded_damage(damage, scale * self.visible).mean() for scale in SCALES]).mean())

    def measure(
        self, schedules: Sequence[Schedule], cases: Sequence[Case] | None = None, advance: Advance = lambda done, doing="": None
    ) -> None:
        """Runs what is not known yet; schedules that begin alike share their steps. A search that is killed loses the calls in flight.

        Args:
            schedules: those that are to be known.
            cases: of these cases; by default of all.
            advance: called with the number of calls done, or found to be done.
        """
        batches = []
        cases = self.cases if cases is None else cases
        for at in range(0, len(cases), self.batch_size):
            some = cases[at : at + self.batch_size]
            todo = sorted({one for one in schedules if not all(self.table.knows(case, name_of(one)) for case in some)})
            if todo:
                batches.append([(some, [(0,) * self.num_steps, *todo])])
            else:
                advance(1)
        for rows, values in work_off(batches, self._run, self.processes):
            self.table.add(rows, values)
            advance(1, f"{len({name for _, name in rows})} schedules on {len({case for case, _ in rows})} captions")

    def _run(self, batch: tuple[Sequence[Case], Sequence[Schedule]]) -> tuple[list[tuple[Case, str]], dict[str, Tensor]]:
        """One call: its rows, and their values."""
        cases, schedules = batch
        values, _ = measure(self.pipeline, self.reward, cases, torch.tensor(schedules), self.kinds, [2])
        rows = [(case, name_of(schedule)) for case in cases for schedule in schedules]
        return rows, {name: value.flatten() for name, value in values.items()}

    def _best_of(self, candidates: Sequence[Schedule], advance: Advance) -> Schedule:
        """The best of several: all run on a part of the captions, and the few that do best there on all. The first of equals is taken."""
        self.measure(candidates, self._part, advance)
        few = sorted(candidates, key=partial(self.score, cases=self._part))[:FINALISTS]
        self.measure([candidates[0], *few], self._rest, advance)
        return min([candidates[0], *few], key=self.score)

    def best(self, num_reused: int, advance: Advance = lambda done, doing="": None) -> Schedule:
        """The best schedule found that reuses so many steps: evenly spread ones first, then moves, as long as they help.

        Args:
            num_reused: steps that reuse.
            advance: called with the number of calls done, 1 + `ROUNDS` times those of one round in all.
        """
        return self.climb(self._best_of(self._spread(num_reused), advance), advance)

    def climb(self, schedule: Schedule, advance: Advance = lambda done, doing="": None) -> Schedule:
        """Moves of a schedule, as long as they help.

        Args:
            schedule: where to start.
            advance: called with the number of calls done, `ROUNDS` times those of one round in all.
        """
        chosen = schedule
        for number in range(1, ROUNDS + 1):
            better = self._best_of([chosen, *self._moves(chosen)], advance)
            if better == chosen:
                advance(self._calls * (ROUNDS - number))
                break
            chosen = better
        self._report(
            f"{sum(map(bool, chosen)):3d} of {self.num_steps} steps reuse: {name_of(chosen)}, bounded damage {self.score(chosen):.4f}"
            + (f" rather than {self.score(schedule):.4f} of {name_of(schedule)}" if chosen != schedule else "")
        )
        return chosen

    @property
    def _calls(self) -> int:
        """Most calls of the pipeline in one round."""
        return sum(-(-len(some) // self.batch_size) for some in (self._part, self._rest))

    def _spread(self, num_reused: int) -> list[Schedule]:
        """Evenly spread reuse of each kind, over several ranges."""
        found: dict[Schedule, None] = {}
        for start in range(self.open.start, self.open.start + max(1, len(self.open) // 2), 2):
            for end in (self.open.stop - 1, self.open.stop - 2):
                width = (end - start) / max(1, num_reused - 1)
                steps = {round(start + width * place) for place in range(num_reused)}
                if len(steps) == num_reused and max(steps) < self.open.stop:
                    for action in range(1, len(self.kinds) + 1):
                        found[tuple(action if step in steps else 0 for step in range(self.num_steps))] = None
        return list(found)

    def _moves(self, schedule: Schedule) -> list[Schedule]:
        """One reuse up to two steps earlier or later; or another kind in a third of the schedule."""
        found: dict[Schedule, None] = {}
        for step in (step for step in self.open if schedule[step]):
            for other in (step - 2, step - 1, step + 1, step + 2):
                if other in self.open and not schedule[other]:
                    moved = list(schedule)
                    moved[step], moved[other] = 0, schedule[step]
                    found[tuple(moved)] = None
        third = self.num_steps // 3
        for start in (0, third, 2 * third):
            for action in range(1, len(self.kinds) + 1):
                inside = range(start, start + third if start < 2 * third else self.num_steps)
                found[tuple(action if kept and step in inside else kept for step, kept in enumerate(schedule))] = None
        return [moved for moved in found if moved != schedule]

    def ladder(self, most_saved: float = 0.5) -> Ladder:
        """The best schedule at every number of reused steps, and ways back: from what each reuses early, to few reuses late.

        Args:
            most_saved: share of the steps that the last rung reuses.

        Raises:
            ValueError: it is no share, or none of a step; or no step may reuse.
        """
        most = min(round(most_saved * self.num_steps), len(self.open))
        if not self.open:
            raise ValueError(
                f"None of the {self.num_steps} steps may reuse: the first {self.open.start} and the last compute. Take more."
            )
        if most_saved > 1 or most < 1:
            raise ValueError(
                f"`most_saved` must be a share of the steps, of one of the {self.num_steps} at least; got {most_saved}."
            )
        rungs = [(0,) * self.num_steps]
        with self._progress(f"Searching for 1 to {most} of {self.num_steps} steps that reuse", most * (1 + ROUNDS)) as advance:
            rungs += [self.best(count, advance) for count in range(1, most + 1)]
        first, middle = self.open.start - 1, round(EARLY * self.num_steps)
        later = {round(share * self.num_steps) - 1 for share in DECIDED_AT}
        steps = (first, *sorted(step for step in later if step > first))
        gentle = rungs[min(3, len(rungs) - 1)]
        for early in dict.fromkeys(rung[:middle] for rung in rungs if any(rung[:middle])):
            back = early + tuple(action if step >= middle else 0 for step, action in enumerate(gentle))[middle:]
            if back not in rungs:
                rungs.append(back)
        rungs = sorted(rungs, key=lambda rung: sum(map(bool, rung)))
        return Ladder(torch.tensor(rungs), self.kinds, steps)

    def improved(self, ladder: Ladder) -> Ladder:
        """A ladder whose rungs were moved as long as that helps; its decisions stay. Rungs that meet become one.

        Args:
            ladder: of the search's kinds and number of steps.

        Raises:
            LadderError: it is of other kinds or another number of steps.
        """
        if ladder.kinds != self.kinds or ladder.num_steps != self.num_steps:
            raise LadderError(
                f"The ladder is of {ladder.num_steps} steps and {ladder.kinds}; the search is of {self.num_steps} and {self.kinds}."
            )
        rungs = [tuple(rung) for rung in ladder.actions.tolist()]
        self.open = range(ladder.decision_steps[0] + 1, self.num_steps - 1)
        with self._progress(f"Moving the {len(rungs) - 1} rungs of a ladder", (len(rungs) - 1) * ROUNDS) as advance:
            found = dict.fromkeys([rungs[0], *(self.climb(rung, advance) for rung in rungs[1:])])
        return replace(ladder, actions=torch.tensor(sorted(found, key=lambda rung: sum(map(bool, rung)))))

    def _progress(self, doing: str, rounds: int) -> AbstractContextManager[Advance]:
        """Says what begins, and the progress of so many rounds."""
        self._report(
            f"{doing}, on {len(self.cases)} captions. What is found is kept in {self.table.folder or 'memory'}; "
            f"{len(self.table)} results are known from before."
        )
        return progress("Searching schedules, calls of the pipeline", rounds * self._calls)
