"""Rollouts a second against one call of the pipeline for each, steps of the transformer, milliseconds stage by stage, and the memory beside
the model's weights.

    python benchmarks/rollouts.py
    python benchmarks/rollouts.py --ladder configs/ladders/pixart_alpha.json --blocks 28 --cases 2256   what a run costs; runs nothing

The schedules are those of a policy that is undecided: after 40 % of the steps every step but the last reuses with probability one half.
All ways give the same rewards; it is checked.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from timing import interleave, ratio
from torch import Tensor, nn

from ada.data import load_prompts
from ada.evaluation.measure.counting import weighed
from ada.rewards import PerceptualDistance, WeightedReward
from ada.rollouts import Case, FrozenPipeline, References, Tape
from ada.rollouts import Table as RewardTable
from ada.rollouts.driver import GivenSchedules
from ada.rollouts.table import stack
from ada.schedules import Ladder
from blockdance import Reuse, ReuseSchedule, full_compute

ARGUMENTS = {"guidance_scale": 4.0, "max_sequence_length": 24, "use_resolution_binning": False, "clean_caption": False}
STAGES = ("encode", "denoise", "decode", "reward")
ONE_BY_ONE, FIRST, TAPED, KNOWN = "one call a rollout", "shared, first epoch", "shared, tape is warm", "from the table"


class Stopwatch:
    """Seconds of every stage: those of the modules that do it."""

    def __init__(self, pipeline: FrozenPipeline, clock: Callable[[], float]) -> None:
        components = pipeline.pipeline
        self._clock = clock
        self._modules = {
            "encode": components.text_encoder, "denoise": components.transformer, "decode": components.vae.decoder,
        }  # fmt: skip
        self.seconds = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def running(self) -> Iterator[None]:
        """While it lasts, the modules' calls are timed."""
        with ExitStack() as hooks:
            for stage, module in self._modules.items():
                for hook in self._hooks(stage, module):
                    hooks.callback(hook.remove)  # type: ignore[attr-defined]
            yield

    def now(self) -> float:
        """The time when all that was given to the device is done."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return self._clock()

    def _hooks(self, stage: str, module: nn.Module) -> list[object]:
        started: list[float] = []

        def end(*_: object) -> None:
            self.seconds[stage] += self.now() - started.pop()

        return [
            module.register_forward_pre_hook(lambda *_: started.append(self.now())),
            module.register_forward_hook(end, always_call=True),
        ]


class Workload:
    """Groups of schedules of a few prompts.

    Args:
        options: of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.pipeline = FrozenPipeline(options.model, options.steps, ARGUMENTS).to(options.device)
        self.reward = WeightedReward({"perceptual": PerceptualDistance(options.scorer)}, {"perceptual": 1.0}).to(options.device)
        prompts = load_prompts(options.source, "validation", limit=options.prompts)
        self.cases = [Case(prompt, seed) for seed, prompt in enumerate(prompts["prompt"])]
        self.group = options.group
        self.kinds = (Reuse(boundary=round(self.pipeline.num_blocks * 2 / 3)),)
        self.decision_step = max(2, round(0.4 * options.steps))
        self.actions = torch.zeros(len(self.cases), self.group, options.steps, dtype=torch.int64)
        decided = self.actions[..., self.decision_step + 1 : -1]
        decided.copy_(torch.randint(2, decided.shape, generator=torch.Generator().manual_seed(0)))
        self.clock = time.process_time if options.cpu_time else time.perf_counter
        self.stopwatch = Stopwatch(self.pipeline, self.clock)
        self.references = self.new_references()
        self.quality: dict[str, Tensor] = {}

    @property
    def num_rollouts(self) -> int:
        return len(self.cases) * self.group

    def steps(self) -> dict[str, float]:
        """Steps of the transformer that each way takes for a rollout; the rest of what it gains is larger batches."""
        prompts, blocks = len(self.cases), self.pipeline.num_blocks
        first = self.decision_step + 1
        alone = sum(steps_of(actions, self.kinds, blocks)[0] for actions in self.actions)
        taped = sum(steps_of(actions, self.kinds, blocks, first)[1] for actions in self.actions)
        references = prompts * self.pipeline.num_inference_steps
        ways = {ONE_BY_ONE: references + alone, FIRST: references + taped, TAPED: taped, KNOWN: 0.0}
        return {way: steps / self.num_rollouts for way, steps in ways.items()}

    def new_references(self) -> References:
        return References(self.pipeline, Tape(2**30), self.kinds, self.decision_step)

    def one_by_one(self) -> Tensor:
        """A call of the pipeline for each schedule, and one for each prompt's reference."""
        full = full_compute(1, self.pipeline.num_inference_steps)
        quality = []
        for case, schedules in zip(self.cases, self.actions, strict=True):
            reference = self.pipeline.generate([case.prompt], [case.seed], full).images
            for actions in schedules:
                image = self.pipeline.generate([case.prompt], [case.seed], ReuseSchedule(actions[None], self.kinds)).images
                quality.append(self.score(image, [case.prompt], reference))
        return torch.cat(quality)

    def first_epoch(self) -> Tensor:
        """All of them in one call, after one that makes the references."""
        self.references = self.new_references()
        return self.from_tape()

    def from_tape(self) -> Tensor:
        """All of them in one call, whose first steps are replayed."""
        rows = [case for case in self.cases for _ in range(self.group)]
        records = self.references.of(self.cases)
        generated = self.pipeline.generate(
            [case.prompt for case in rows],
            [case.seed for case in rows],
            GivenSchedules(
                ReuseSchedule(self.actions.flatten(0, 1), self.kinds), (self.decision_step,), self.kinds[0].boundary
            ),
            groups=[place for place in range(len(self.cases)) for _ in range(self.group)],
            recording=self.references.steps([record for record in records for _ in range(self.group)]),
        )
        reference = self.references.images(records).repeat_interleave(self.group, 0)
        return self.score(generated.images, [case.prompt for case in rows], reference)

    def score(self, images: Tensor, prompts: list[str], reference: Tensor) -> Tensor:
        started = self.stopwatch.now()
        total = self.reward(images, prompts, reference).total
        self.stopwatch.seconds["reward"] += self.stopwatch.now() - started
        return total


def ladder_cost(ladder: Ladder, num_blocks: int) -> dict[str, float]:
    """What all rungs of one case cost, in images of which every step computes; a step of reuse counts as the blocks that it runs.

    Args:
        ladder: the rungs.
        num_blocks: of the transformer.

    Returns:
        `alone`: each rung in a generation of its own; `shared`: with every step that rungs have in common run once; `images`: how many
        are decoded and scored.
    """
    alone, shared = steps_of(ladder.actions, ladder.kinds, num_blocks)
    return {"alone": alone / ladder.num_steps, "shared": shared / ladder.num_steps, "images": len(ladder.actions)}


def steps_of(actions: Tensor, kinds: Sequence[Reuse], num_blocks: int, first: int = 0) -> tuple[float, float]:
    """Steps of the transformer that schedules of one image take, each by itself, and with what they have in common run once; a step of
    reuse counts as the blocks that it runs.

    Args:
        actions: int64 `(schedules, num_steps)`.
        kinds: what they refer to.
        num_blocks: of the transformer.
        first: the step before which nothing is run.
    """
    costs = [1.0, *((num_blocks - 1 - kind.boundary) / num_blocks for kind in kinds)]
    schedules = [tuple(schedule) for schedule in actions.tolist()]
    beginnings = {schedule[: step + 1] for schedule in schedules for step in range(first, len(schedule))}
    alone = sum(costs[action] for schedule in schedules for action in schedule[first:])
    return alone, sum(costs[beginning[-1]] for beginning in beginnings)


def paper_cost(
    num_steps: int = 20, num_blocks: int = 28, boundary: int = 20, captions: int = 10_000, epochs: int = 100
) -> dict[str, float]:
    """What the paper's run costs (10 000 captions, 100 epochs, one schedule each) in images of which every step computes, where every
    decided step reuses with probability one half, and the steps up to ρ = 40 % come from the tape in all epochs.

    Returns:
        `shared`: of a rollout; `transformer`: of all, with a reference for each caption; `images`: how many are decoded and scored.
    """
    decision_step = max(2, round(0.4 * num_steps))
    decided = round(0.95 * num_steps) - decision_step - 1
    reuse = (num_blocks - 1 - boundary) / num_blocks
    steps = num_steps - (decision_step + 1) - decided * (1 - reuse) / 2
    rollouts = captions * epochs
    return {"shared": steps / num_steps, "transformer": rollouts * steps / num_steps + captions, "images": rollouts + captions}


def print_cost(title: str, transformer: float, images: int, prompts: int, gpus: int) -> None:
    """Says what a run takes of every stage, in all and on each of some GPUs."""
    stages = {"images' worth of transformer time": transformer, "images decoded and scored": images, "prompts encoded": prompts}
    in_all = ", ".join(f"{round(number):,} {name}" for name, number in stages.items())
    print(f"{title}: {in_all}; on each of {gpus} GPUs {', '.join(f'{round(number / gpus):,}' for number in stages.values())}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="checkpoints/emoji-dit", help="folder of a PixArt pipeline")
    parser.add_argument("--scorer", default="checkpoints/emoji-scorer", help="folder or Hub id of the reward's vision model")
    parser.add_argument("--source", default="checkpoints/emoji-prompts", help="captions, as in `ada.data.load_prompts`")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--prompts", type=int, default=2, help="whose groups are rolled out together")
    parser.add_argument("--group", type=int, default=8, help="schedules of each prompt")
    parser.add_argument("--repeats", type=int, default=3, help="rounds that are timed")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--cpu-time", action="store_true", help="count this process's own seconds: others use the machine too")
    parser.add_argument("--ladder", help="file of a ladder whose cost is told instead")
    parser.add_argument("--blocks", type=int, default=28, help="of the ladder's transformer")
    parser.add_argument("--cases", type=int, default=2256, help="of a run with the ladder: captions times noises")
    parser.add_argument("--gpus", type=int, default=8, help="that the run is divided among")
    options = parser.parse_args()
    if options.repeats < 2:
        parser.error("--repeats must be 2 or more: ratios come with their quartiles")
    if options.ladder is not None:
        cost = ladder_cost(Ladder.load(options.ladder), options.blocks)
        print(
            f"{options.ladder}: {cost['images']} rungs of a case take {cost['shared']:.2f} images' worth of transformer time, "
            f"{cost['alone']:.2f} if each ran alone."
        )
        transformer, images = options.cases * cost["shared"], options.cases * round(cost["images"])
        print_cost(f"{options.cases:,} cases", transformer, images, options.cases, options.gpus)
        paper = paper_cost(num_blocks=options.blocks)
        print_cost("The paper's run", paper["transformer"], round(paper["images"]), 10_000, options.gpus)
        return
    work, console = Workload(options), Console()
    with tempfile.TemporaryDirectory() as folder:
        console.print(speed_table(work, options.repeats, Path(folder)))
    console.print(memory_table(work))


def speed_table(work: Workload, repeats: int, folder: Path) -> Table:
    """A row for each way: rollouts a second, and where the time goes."""
    known = RewardTable(folder, {})

    def from_table() -> Tensor:
        return stack(RewardTable(folder, {}), work.cases, "quality").flatten()

    ways: dict[str, Callable[[], Tensor]] = {
        ONE_BY_ONE: work.one_by_one, FIRST: work.first_epoch, TAPED: work.from_tape, KNOWN: from_table
    }  # fmt: skip
    stages = {way: dict.fromkeys(STAGES, 0.0) for way in ways}

    def timed(way: str, run: Callable[[], Tensor]) -> Callable[[], None]:
        def call() -> None:
            before = dict(work.stopwatch.seconds)
            work.quality[way] = run()
            for stage, seconds in work.stopwatch.seconds.items():
                stages[way][stage] += seconds - before[stage]
            if way == ONE_BY_ONE:
                quality = work.quality[way].unflatten(0, (-1, work.group))
                known.add(work.cases, {"quality": quality}, torch.zeros(len(work.cases), 1, 1))

        return call

    with work.stopwatch.running():
        seconds = interleave({way: timed(way, run) for way, run in ways.items()}, repeats, 1, work.clock)
    for way, quality in work.quality.items():
        torch.testing.assert_close(quality, work.quality[ONE_BY_ONE], atol=1e-4, rtol=0, msg=f"{way}: other rewards")
    table = Table(
        "way", "rollouts/s", "times as fast", "steps", *STAGES, "all",
        title=f"{len(work.cases)} × {work.group} schedules, {work.pipeline.num_inference_steps} steps; stages in ms an image",
    )  # fmt: skip
    for way, taken in seconds.items():
        middle, low, high = ratio(seconds[ONE_BY_ONE], taken)
        per_image = [1e3 * stages[way][stage] / (repeats + 1) / work.num_rollouts for stage in STAGES]
        typical = sorted(taken)[len(taken) // 2]
        table.add_row(
            way, f"{work.num_rollouts / typical:.2f}", f"{middle:.3g} ({low:.3g} to {high:.3g})",
            f"{work.steps()[way]:.1f}", *(f"{value:.1f}" for value in per_image), f"{1e3 * typical / work.num_rollouts:.1f}",
        )  # fmt: skip
    return table


def memory_table(work: Workload) -> Table:
    """Most bytes held at once above the weights."""
    parts = [part for part in work.pipeline.pipeline.components.values() if isinstance(part, nn.Module)]
    weights = sum(parameter.nbytes for part in parts for parameter in part.parameters())
    case, full = work.cases[0], full_compute(1, work.pipeline.num_inference_steps)
    calls: dict[str, Callable[[], object]] = {
        "one plain call": lambda: work.pipeline.generate([case.prompt], [case.seed], full),
        TAPED: work.from_tape,
    }
    table = Table("call", "peak above the weights, MiB", title=f"The frozen pipeline's weights: {weights / 2**20:.1f} MiB")
    for name, call in calls.items():
        table.add_row(name, f"{weighed(work.pipeline.device, call)[1] / 2**20:.1f}")
    return table


if __name__ == "__main__":
    main()
