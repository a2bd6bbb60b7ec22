"""`python -m ada search | show | push | pull | export`."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from jsonargparse import auto_cli

from ada.data import load_prompts
from ada.export import export
from ada.noise import LADDER_SEARCH, noise_seed
from ada.policy import AdaPolicy
from ada.policy.hub import pull_folder
from ada.rewards import RewardError, WeightedReward
from ada.rewards.damage import VISIBLE_DISTANCE
from ada.rollouts import Case, FrozenPipeline
from ada.schedules import Ladder
from ada.search import ScheduleSearch
from blockdance import BlockDanceError, Reuse

INTERRUPTED = 130
"""Exit status of a command that Ctrl+C ended."""


def search(
    pipeline: FrozenPipeline,
    reward: WeightedReward,
    output: Path,
    source: str = "checkpoints/emoji-prompts",
    column: str | None = None,
    split: str = "train",
    limit: int = 24,
    boundaries: Sequence[int] | None = None,
    weights: Sequence[float] = (0.5,),
    visible_damage: float = VISIBLE_DISTANCE,
    most_saved: float = 0.5,
    start: Path | None = None,
    processes: int | None = None,
    folder: Path = Path("runs/tables"),
) -> None:
    """Searches the best schedule at every saving and writes a ladder, on the accelerator where there is one; goes on where it was when
    it is given again.

    Args:
        pipeline: the frozen pipeline.
        reward: quality beside the reference; what is lost is the damage.
        output: the ladder's file.
        source: captions of the kind that users send, as in training; never those that a policy is tested on.
        column: the column that holds the caption; by default as in `ada.data.load_prompts`.
        split: their split.
        limit: number of captions; with few, rungs are chosen for the images that happen to be among them.
        boundaries: last blocks that a reuse step may skip; by default the model's last one.
        weights: shares of the extrapolation on offer, beside reuse as it is.
        visible_damage: the damage that a person just sees.
        most_saved: share of the steps that the last rung reuses.
        start: a ladder's file: its rungs are moved as long as that helps, instead of a search from nothing. It brings the kinds of reuse
            and what is saved: `boundaries`, `weights` and `most_saved` are not asked then.
        processes: how many run calls of the pipeline at the same time; by default, on a CPU under Linux, as many as there are threads, 8 at
            most.
        folder: where results are kept, in one table with those of training.
    """
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    pipeline.to(device)
    reward.to(device)
    prompts = load_prompts(source, split, column, limit)
    cases = [
        Case(prompt, noise_seed(0, index, LADDER_SEARCH))
        for prompt, index in zip(prompts["prompt"], prompts["index"], strict=True)
    ]
    ladder = None if start is None else Ladder.load(start)
    kinds = ladder.kinds if ladder else kinds_of(boundaries or (pipeline.num_blocks - 1,), weights)
    try:
        schedules = ScheduleSearch(
            pipeline,
            reward,
            cases,
            kinds,
            visible_damage,
            folder=folder,
            processes=processes,
            report=partial(print, flush=True),
        )
        found = schedules.ladder(most_saved) if ladder is None else schedules.improved(ladder)
    except KeyboardInterrupt:
        print(f"Stopped. What was found is kept in {folder}; the same command goes on from there.", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    found.save(output)
    print(f"Wrote {len(found)} rungs to {output}; a policy decides after steps {', '.join(map(str, found.decision_steps))}.")


def kinds_of(boundaries: Sequence[int], weights: Sequence[float]) -> tuple[Reuse, ...]:
    """After every boundary, as it is and extrapolated by every weight."""
    return tuple(
        kind
        for boundary in boundaries
        for kind in (Reuse(boundary=boundary), *(Reuse(boundary=boundary, order=1, weight=weight) for weight in weights))
    )


def show(policy: str, revision: str | None = None) -> None:
    """Says what a policy is.

    Args:
        policy: folder or Hub id.
        revision: branch, tag or commit on the Hub.
    """
    loaded = AdaPolicy.from_pretrained(policy, revision=revision)
    base = loaded.base_model
    print(f"{type(loaded).__name__}, {loaded.num_parameters:,} parameters, weights {loaded.digest()}")
    print(f"for {base.transformer} with {base.num_blocks} blocks, such as {base.name or 'a model without a Hub id'}")
    print(f"decides after steps {', '.join(map(str, loaded.decision_steps(20)))} of 20")
    for action, kind in enumerate(loaded.kinds, 1):
        print(f"  {action}: {kind}")


def push(
    policy: str,
    repo_id: str,
    evaluation: Path | None = None,
    base_model: str | None = None,
    revision: str | None = None,
    private: bool | None = None,
) -> None:
    """Publishes a policy with its card and figures.

    Args:
        policy: folder, as training exports it, or another Hub id.
        repo_id: `user/name` on the Hub; made if it is not there.
        evaluation: output folder of `evaluate.py` on this policy, whose table and plot go into the card.
        base_model: Hub id of the model that it was trained on, where that was a local copy.
        revision: branch to publish on; by default the main one.
        private: whether a new repository is private.
    """
    loaded = AdaPolicy.from_pretrained(policy)
    address = loaded.push_to_hub(repo_id, evaluation=evaluation, base_model=base_model, revision=revision, private=private)
    print(f"Published: {address}")


def pull(policy: str, folder: Path, revision: str | None = None) -> None:
    """Copies a policy with its card and figures into a folder.

    Args:
        policy: Hub id; `user/name@revision` names a revision too.
        folder: where to.
        revision: branch, tag or commit.
    """
    AdaPolicy.from_pretrained(policy, revision=revision)  # nothing else than a policy is copied
    pull_folder(policy, folder, revision)
    print(f"Wrote {policy} to {folder}.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status."""
    try:
        auto_cli(
            [search, show, push, pull, export],
            args=None if arguments is None else list(arguments),
            as_positional=False,
            allow_abbrev=False,
            prog="python -m ada",
        )
    except (OSError, BlockDanceError, RewardError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
