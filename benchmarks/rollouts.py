"""Rollouts a second against one call of the pipeline for each, steps of the transformer, milliseconds stage by stage, and the memory beside
the model's weights.

    python benchmarks/rollouts.py
    python benchmarks/rollouts.py --ladder configs/ladders/pixart_alpha.json --blocks 28 --cases 2256   what a run costs; runs nothing

The schedules are those of a policy that is undecided: after 40 % of the steps every step but the last reuses with probability one half.
They are rolled out as a ladder's training does, and as the paper's algorithm does. All ways give the same rewards; it is checked.
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
from ada.rewards import PerceptualDistance, Reward, WeightedReward
from ada.rollouts import EMBEDDED, EMBEDDED_ARGUMENTS, Case, FrozenPipeline, measure, name_of, open_table
from ada.rollouts.collect import QUALITY
from ada.schedules import Ladder
from ada.training import StepTraining
from ada.training.sampling import Sampler
from blockdance import Reuse, ReuseSchedule, full_compute

STAGES = ("encode", "denoise", "decode", "reward")
ONE_BY_ONE, LADDER, READ = "one call a rollout", "a ladder's, table is empty", "a ladder's, table is warm"
FIRST, TAPED, KNOWN = "sampled, tape is empty", "sampled, tape is warm", "sampled, tape and table are warm"


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


class Timed(Reward):
    """Another reward, whose calls are timed.

    Args:
        reward: the reward.
        stopwatch: counts its seconds.
    """

    compares_with_reference = True

    def __init__(self, reward: Reward, stopwatch: Stopwatch) -> None:
        self._reward, self._stopwatch = reward, stopwatch

    def __call__(self, images: Tensor, prompts: Sequence[str], reference: Tensor) -> Tensor:
        started = self._stopwatch.now()
        scores = self._reward(images, prompts, reference)
        self._stopwatch.seconds["reward"] += self._stopwatch.now() - started
        return scores

    def to(self, device: torch.device | str) -> "Timed":
        self._reward.to(device)
        return self


class Workload:
    """Groups of schedules of a few prompts: the same for each, as a ladder has them.

    Args:
        options: of the command line.
        folder: where tables are kept.
    """

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.pipeline = FrozenPipeline(options.model, options.steps, EMBEDDED_ARGUMENTS).to(options.device)
        self.clock = time.process_time if options.cpu_time else time.perf_counter
        self.stopwatch = Stopwatch(self.pipeline, self.clock)
        distance = Timed(PerceptualDistance(options.scorer), self.stopwatch)
        self.reward = WeightedReward({"perceptual": distance}, {"perceptual": 1.0}).to(options.device)
        prompts = load_prompts(options.source, "validation", limit=options.prompts)
        self.cases = [Case(prompt, seed) for seed, prompt in enumerate(prompts["prompt"])]
        self.kinds = (Reuse(boundary=round(self.pipeline.num_blocks * 2 / 3)),)
        training = StepTraining(self.pipeline, self.reward, self.kinds)
        training.prepare(self.cases[0].prompt)
        self.policy = training.policy.to(options.device)
        (self.decision_step,) = self.policy.decision_steps(options.steps)
        self.group: int = options.group
        steps = self.policy.decided_steps(options.steps)
        self.decisions = torch.randint(2, (self.group, len(steps)), generator=torch.Generator().manual_seed(0))
        self.actions = self.policy.schedule(self.decisions, options.steps).actions
        self._folder = folder
        self.sampler, self._knowing = self._new_sampler(None), self._new_sampler(folder)
        self.quality: dict[str, Tensor] = {}

    @property
    def num_rollouts(self) -> int:
        return len(self.cases) * self.group

    def ways(self) -> dict[str, Callable[[], Tensor]]:
        """Ways to the qualities of all rollouts, `(rollouts,)`."""
        return {
            ONE_BY_ONE: self.one_by_one, LADDER: self.ladder, FIRST: self.first_epoch, TAPED: self.from_tape,
            KNOWN: self.from_tape_and_table, READ: self.from_table,
        }  # fmt: skip

    def steps(self) -> dict[str, float]:
        """Steps of the transformer that each way takes for a rollout; the rest of what it gains is larger batches."""
        blocks, reference = self.pipeline.num_blocks, self.pipeline.num_inference_steps
        alone = steps_of(self.actions, self.kinds, blocks)[0]
        with_reference = torch.cat([torch.zeros_like(self.actions[:1]), self.actions])
        together = steps_of(with_reference, self.kinds, blocks)[1]
        taped = steps_of(self.actions, self.kinds, blocks, self.decision_step + 1)[1]
        ways = {ONE_BY_ONE: reference + alone, LADDER: together, FIRST: reference + taped, TAPED: taped, KNOWN: 0.0, READ: 0.0}
        return {way: steps / self.group for way, steps in ways.items()}

    def _new_sampler(self, table: Path | None) -> Sampler:
        return Sampler(self.pipeline, self.reward, None, 1.0, 0.0, self.kinds, self.decision_step, table)

    def one_by_one(self) -> Tensor:
        """A call of the pipeline for each schedule, and one for each prompt's reference."""
        full = full_compute(1, self.pipeline.num_inference_steps)
        quality = []
        for case in self.cases:
            reference = self.pipeline.generate([case.prompt], [case.seed], full).images
            for actions in self.actions:
                image = self.pipeline.generate([case.prompt], [case.seed], ReuseSchedule(actions[None], self.kinds)).images
                quality.append(self.reward(image, [case.prompt], reference).total)
        return torch.cat(quality)

    def ladder(self) -> Tensor:
        """All of them and the references in one call, as a ladder's training fills its table."""
        actions = torch.cat([torch.zeros_like(self.actions[:1]), self.actions])
        values, _ = measure(self.pipeline, self.reward, self.cases, actions, self.kinds, [self.decision_step])
        rows = [(case, name_of(schedule)) for case in self.cases for schedule in actions.tolist()]
        open_table(self._folder, self.pipeline, self.reward, self.kinds).add(
            rows, {name: value.flatten() for name, value in values.items()}
        )
        return values[QUALITY][:, 1:].flatten()

    def first_epoch(self) -> Tensor:
        """Sampled, with an empty tape: the references are made, then all schedules in one call."""
        self.sampler = self._new_sampler(None)
        return self.from_tape()

    def from_tape(self) -> Tensor:
        """Sampled: all of them in one call, whose first steps are replayed."""
        return self._roll_out(self.sampler)

    def from_tape_and_table(self) -> Tensor:
        """Sampled: what the policy sees is replayed, and what it decides is in the table."""
        return self._roll_out(self._knowing)

    def from_table(self) -> Tensor:
        """A ladder's: read from disk."""
        table = open_table(self._folder, self.pipeline, self.reward, self.kinds)
        schedules = [name_of(actions) for actions in self.actions.tolist()]
        return torch.cat([table.values(case, schedules, QUALITY) for case in self.cases])

    def _roll_out(self, sampler: Sampler) -> Tensor:
        prompts, seeds = [case.prompt for case in self.cases], [case.seed for case in self.cases]
        weights = torch.full((len(prompts),), 2.0, device=self.pipeline.device)
        decisions = self.decisions.to(self.pipeline.device).expand(len(prompts), -1, -1)
        drawn = sampler.roll_out(self.policy, prompts, seeds, weights, lambda logits: decisions, self.group, False)
        return drawn.quality.flatten()


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
    parser.add_argument("--model", default=EMBEDDED, help="folder of a PixArt pipeline")
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
    with tempfile.TemporaryDirectory() as folder:
        work, console = Workload(options, Path(folder)), Console()
        console.print(speed_table(work, options.repeats))
        console.print(memory_table(work))


def speed_table(work: Workload, repeats: int) -> Table:
    """A row for each way: rollouts a second, and where the time goes."""
    stages: dict[str, list[dict[str, float]]] = {way: [] for way in work.ways()}

    def timed(way: str, run: Callable[[], Tensor]) -> Callable[[], None]:
        def call() -> None:
            before = dict(work.stopwatch.seconds)
            work.quality[way] = run()
            stages[way].append({stage: seconds - before[stage] for stage, seconds in work.stopwatch.seconds.items()})

        return call

    with work.stopwatch.running():
        seconds = interleave({way: timed(way, run) for way, run in work.ways().items()}, repeats, 1, work.clock)
    for way, quality in work.quality.items():
        torch.testing.assert_close(quality, work.quality[ONE_BY_ONE], atol=1e-4, rtol=0, msg=f"{way}: other rewards")
    table = Table(
        "way", "rollouts/s", "times as fast", "steps", *STAGES, "all",
        title=f"{len(work.cases)} × {work.group} schedules, {work.pipeline.num_inference_steps} steps; stages in ms an image",
    )  # fmt: skip
    for way, taken in seconds.items():
        middle, low, high = ratio(seconds[ONE_BY_ONE], taken)
        timed_rounds = stages[way][-repeats:]
        per_image = [1e3 * sum(one[stage] for one in timed_rounds) / repeats / work.num_rollouts for stage in STAGES]
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
