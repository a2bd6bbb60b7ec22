"""The data that a ladder's policy learns from: captions, the rollouts of every rung on them, and batches of both."""

import inspect
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from ada.data import check_counts, check_held_out, load_prompts
from ada.noise import VALIDATION, noise_seed
from ada.progress import progress
from ada.rewards import WeightedReward
from ada.rewards.damage import VISIBLE_DISTANCE
from ada.rollouts import Case, Collector, FrozenPipeline
from ada.schedules import Ladder
from ada.training.errors import RunError, together


class RolloutDataModule(LightningDataModule):
    """Rolls every rung of a ladder out on captions, and serves the results as batches.

    Sampling is deterministic given the noise: rollouts are run once, kept in a table on disk schedule by schedule, and reused by every
    epoch, λ, run and ladder of the same settings. Each process runs its share.

    Args:
        pipeline: the frozen pipeline.
        reward: quality Q beside the reference; what an image loses is its damage.
        ladder: file of the ladder, as `Ladder.save` writes it.
        source: a known set, folder, file or Hub id of captions, as in `load_prompts`.
        column: the column that holds the caption; by default as in `load_prompts`.
        train_split: name of the split.
        validation_split: the split of held-out captions; None where the policy is judged by cross-fitting, which needs none.
        train_limit, validation_limit: number of captions, spread evenly over the split; None for all.
        noise_seeds: noises per caption.
        table: folder of the tables; None keeps them in memory only.
        rollout_batch_size: captions whose rungs run in one call of the pipeline.
        rollout_processes: how many calls run at the same time, as in `Collector`.
        batch_size: cases per gradient step and process.
        visible_damage: τ, the damage that a person just sees.
        seed: of the noise and of the order; None for that of the command line (`seed_everything`), or 0.
        ranges: numbers of the pipeline's call that are drawn for every case between two bounds, so that one policy serves them all:
            `{num_inference_steps: [12, 30], guidance_scale: [3.0, 6.0]}`; whole ones where the call's annotation says so. The ladder is
            stretched to the steps.
    """

    def __init__(
        self,
        pipeline: FrozenPipeline,
        reward: WeightedReward,
        ladder: str,
        source: str = "checkpoints/emoji-prompts",
        column: str | None = None,
        train_split: str = "train",
        validation_split: str | None = None,
        train_limit: int | None = None,
        validation_limit: int | None = None,
        noise_seeds: int = 1,
        table: Path | None = Path("runs/tables"),
        rollout_batch_size: int = 4,
        rollout_processes: int | None = None,
        batch_size: int = 64,
        visible_damage: float = VISIBLE_DISTANCE,
        seed: int | None = None,
        ranges: dict[str, tuple[float, float]] | None = None,
    ) -> None:
        super().__init__()
        check_counts(
            rollout_batch_size=rollout_batch_size,
            batch_size=batch_size,
            noise_seeds=noise_seeds,
            rollout_processes=rollout_processes,
            train_limit=train_limit,
            validation_limit=validation_limit,
        )
        if visible_damage <= 0:
            raise ValueError(f"`visible_damage` must be positive; got {visible_damage}.")
        self.pipeline, self.batch_size, self.visible_damage, self.seed = pipeline, batch_size, visible_damage, seed or 0
        self.ladder = Ladder.load(ladder)
        if self.ladder.num_steps != pipeline.num_inference_steps:
            self.ladder = self.ladder.for_steps(pipeline.num_inference_steps).distinct()
        self._ranges = dict(ranges or {})
        self._whole: set[str] = set()
        parameters = inspect.signature(type(pipeline.pipeline).__call__).parameters
        for name, (low, high) in self._ranges.items():
            if low > high:
                raise ValueError(f"`ranges` must give the lower bound first; got {low} to {high} for `{name}`.")
            kind = str(parameters[name].annotation) if name in parameters else ""
            if "bool" in kind:
                raise ValueError(f"`ranges` are of numbers, and `{name}` is a switch: set it in the pipeline's `arguments`.")
            if name == "num_inference_steps" or ("int" in kind and "float" not in kind):
                self._whole.add(name)
            pipeline.with_settings(**dict(self._draw(0)))  # names an argument that the call does not have
        if "num_inference_steps" in self._ranges:
            self.ladder.for_steps(int(self._ranges["num_inference_steps"][0]))  # names too few steps
        self.collector = Collector(pipeline, reward, self.ladder, table, rollout_batch_size, processes=rollout_processes)
        self._source, self._column = source, column
        self._splits = {"train": (train_split, train_limit), "validation": (validation_split, validation_limit)}
        self._noise_seeds = noise_seeds
        self.reuse_costs: list[float] = []
        self.validation_data: TensorDataset | None = None

    def cases(self, split: str) -> list[Case]:
        """The cases of `train` or `validation`: captions × noises; a case's noise depends on its caption's place in the file."""
        name, limit = self._splits[split]
        if name is None:
            return []
        prompts = load_prompts(self._source, name, self._column, limit)
        first = noise_seed(self.seed, 0, VALIDATION if split == "validation" else 0)
        return [
            Case(prompt, seed, self._draw(seed))
            for prompt, index in zip(prompts["prompt"], prompts["index"], strict=True)
            for seed in range(first + index * self._noise_seeds, first + (index + 1) * self._noise_seeds)
        ]

    def _draw(self, seed: int) -> tuple[tuple[str, Any], ...]:
        """The settings of a case: whole numbers where the call takes those, others with two decimals."""
        source = Random(f"settings {seed}")
        drawn = {name: source.uniform(low, high) for name, (low, high) in sorted(self._ranges.items())}
        return tuple((name, round(value) if name in self._whole else round(value, 2)) for name, value in drawn.items())

    def setup(self, stage: str) -> None:
        trainer = self.trainer
        assert trainer is not None
        if self.reuse_costs:
            return
        if trainer.world_size > 1 and self.collector.table.folder is None:
            raise RunError(
                f"`data.table` is null, and {trainer.world_size} processes give one another their rollouts by its files. Give it a folder "
                "that all of them see, or train with one process (`--trainer.devices 1`)."
            )
        device = trainer.strategy.root_device
        self.pipeline.to(device)
        self.collector.reward.to(device)
        train, validation = self.cases("train"), self.cases("validation")
        check_held_out(self._source, [case.prompt for case in train], [case.prompt for case in validation])
        self.reuse_costs = self.pipeline.reuse_costs(self.ladder.kinds, train[0].prompt)
        for title, cases in (("training", train), ("held-out", validation)):
            self._roll_out(title, cases[trainer.global_rank :: trainer.world_size], trainer)
        trainer.strategy.barrier("rollouts")
        self.collector.table.reload()
        if left := self.collector.missing([*train, *validation]):
            raise RunError(
                f"{len(left)} captions that other processes rolled out are not in {self.collector.table.folder}: give `data.table` a "
                "folder that all of them see."
            )
        self.train_data = self.tensors(train)
        self.validation_data = self.tensors(validation) if validation else None

    def _roll_out(self, title: str, cases: Sequence[Case], trainer: Trainer) -> None:
        """Runs this process's share, in step with the others, so that all of them hear of a failure at once."""
        todo = self.collector.missing(cases)
        # one process alone need not wait for others after every batch
        size = self.collector.batch_size if trainer.world_size > 1 else max(1, len(todo))
        longest = torch.tensor(len(todo), device=trainer.strategy.root_device)
        rounds = -(-int(trainer.strategy.reduce(longest, reduce_op="max")) // size)
        if not rounds:
            return
        started, done = monotonic(), sum(len(self.collector.missing_rungs(case)) for case in todo)
        with progress(f"Rolling out {len(self.ladder)} schedules on {title} captions", len(todo)) as advance:
            for start in range(0, rounds * size, size):
                together(partial(self.collector.fill, todo[start : start + size], advance))
        for logger in trainer.loggers:
            logger.log_metrics({f"rollouts/images_per_second_{title}": done / (monotonic() - started)}, step=0)

    def tensors(self, cases: Sequence[Case]) -> TensorDataset:
        """Sights `(cases, nodes, width)`, damage `(cases, rungs)`, and the number of each case's caption `(cases,)`."""
        numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(case.prompt for case in cases))}
        return TensorDataset(
            self.collector.sights(cases),
            self.collector.values(cases, "damage"),
            torch.tensor([numbers[case.prompt] for case in cases]),
        )

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Batches of places in `train_data`."""
        trainer = self.trainer
        assert trainer is not None
        places = TensorDataset(torch.arange(len(self.train_data)))
        # its order depends on seed and epoch alone, so that a resumed run sees the same batches
        sampler: DistributedSampler[Any] = DistributedSampler(places, trainer.world_size, trainer.global_rank, seed=self.seed)
        return DataLoader(places, self.batch_size, sampler=sampler)
