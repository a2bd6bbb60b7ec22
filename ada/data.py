"""Prompts, on Hugging Face `datasets`."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset, are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, load_dataset
from lightning.pytorch import LightningDataModule
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch.utils.data import DataLoader, DistributedSampler


class PromptsError(ValueError):
    """Prompts that cannot be used; says where they are, what is wrong, and what to do."""


class PromptSet(NamedTuple):
    """Hub id or folder of a known set, its split, and the column that holds the prompt."""

    source: str
    split: str
    column: str


PROMPT_SETS = {
    # 128 held-out captions of the embedded model
    "emoji": PromptSet("checkpoints/emoji-prompts", "test", "prompt"),
    # PartiPrompts, 1632 prompts (Yu et al., 2022)
    "parti": PromptSet("nateraw/parti-prompts", "train", "Prompt"),
    # DrawBench, 200 prompts (Saharia et al., 2022)
    "drawbench": PromptSet("sayakpaul/drawbench", "train", "Prompts"),
    # 30 000 captions of COCO 2014's validation images
    "coco": PromptSet("sayakpaul/coco-30-val-2014", "train", "caption"),
}
COLUMNS = ("prompt", "Prompt", "Prompts", "prompts", "caption", "text", "label")
"""Tried in this order where no column is named."""

BYTE_ORDER_MARK = "\ufeff"
"""What some editors write before the first line."""
FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}


def load_prompts(source: str, split: str | None = None, column: str | None = None, limit: int | None = None) -> Dataset:
    """Loads prompts as a dataset with the columns `prompt` and `index`.

    Args:
        source: a name of `PROMPT_SETS`; a file of JSON lines, CSV, Parquet or text, one prompt a line; a folder with one of those for each
            split, such as `train.jsonl` and `validation.jsonl`; or the Hub id of a dataset.
        split: its name; by default a named set's own, else `test`.
        column: the column that holds the prompt; by default a named set's own, else the first of `COLUMNS` that is there.
        limit: take only so many, spread evenly over the split.

    Raises:
        FileNotFoundError: there is nothing at `source`, here or on the Hub, or the folder lacks the split.
        PromptsError: what is there cannot be read, is empty, or lacks the column; or a limit that leaves nothing.
    """
    if limit is not None and limit < 1:
        raise PromptsError(f"The number of prompts to take (`limit`) must be 1 or more; got {limit}.")
    known = PROMPT_SETS.get(source)
    if known is not None and not Path(source).exists():
        source, split, column = known.source, split or known.split, column or known.column
    path, split, is_text = Path(source), split or "test", False
    with _without_bars():
        if path.is_dir() or path.suffix in FORMATS or source.startswith((".", "/", "checkpoints/")):
            file = path if path.suffix and not path.is_dir() else _file_of(path, split)
            dataset, origin, is_text = _read_file(file, split), str(file), file.suffix == ".txt"
            column = "text" if is_text else column
        else:
            dataset, origin = _read_hub(source, split), f"{source}, split {split}"
    column = column or next((name for name in COLUMNS if name in dataset.column_names), COLUMNS[0])
    if column not in dataset.column_names:
        raise PromptsError(f"{origin} has no column `{column}`; it has {', '.join(dataset.column_names)}. Set `column`.")
    prompts = list(dataset[column])
    if is_text:
        prompts = [prompt.removeprefix(BYTE_ORDER_MARK) for prompt in prompts]
    # a blank line of a text is none of its prompts
    rows = [row for row, prompt in enumerate(prompts) if not is_text or prompt.strip()]
    kind = type(prompts[rows[0]]) if rows else str
    strange = [
        row for row in rows if type(prompts[row]) not in (str, int) or type(prompts[row]) is not kind or prompts[row] == ""
    ]
    if not rows or strange:
        wrong = f"row {strange[0]} is {prompts[strange[0]]!r}" if strange else "there is no row"
        raise PromptsError(
            f"The column `{column}` of {origin} must hold a text in every row, or a class label in every row; {wrong}."
        )
    chosen = rows
    if limit is not None and limit < len(rows):
        chosen = [rows[position * len(rows) // limit] for position in range(limit)]
    return Dataset.from_dict({"prompt": [prompts[index] for index in chosen], "index": chosen})


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keeps the bars of `datasets` away: prompts are read in no time."""
    were_there = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if were_there:
            enable_progress_bars()


def _file_of(folder: Path, split: str) -> Path:
    """A folder's file of a split, in whatever format it is there."""
    files = [folder / f"{split}{suffix}" for suffix in FORMATS]
    return next((file for file in files if file.is_file()), files[0])


def _read_file(file: Path, split: str) -> Dataset:
    if not file.is_file():
        raise FileNotFoundError(
            f"No prompts in {file}. Give a folder with train.jsonl, validation.jsonl and test.jsonl, a single file, or a Hub id."
        )
    if file.suffix not in FORMATS:
        raise PromptsError(f"{file} is no file of prompts by its name: it must end in {', '.join(FORMATS)}.")
    if file.stat().st_size == 0:
        raise PromptsError(f"{file} is empty. It must hold a prompt a line.")
    try:
        dataset = load_dataset(FORMATS[file.suffix], data_files={split: str(file)}, split=split)
    except Exception as error:  # the readers of five formats raise what they like
        raise PromptsError(
            f"The prompts in {file} cannot be read as {FORMATS[file.suffix]}: {_root(error)}. The file must be UTF-8, one prompt a row."
        ) from error
    assert isinstance(dataset, Dataset)
    return dataset


def _read_hub(source: str, split: str) -> Dataset:
    try:
        dataset = load_dataset(source, split=split)
    except Exception as error:  # no such name, no network, no access, no such split
        raise FileNotFoundError(
            f"No prompts at {source!r}: there is no such folder or file here, and the Hub gave no split {split!r} under this name "
            f"({_root(error)}). Give a folder with train.jsonl and validation.jsonl, a file ending in {', '.join(FORMATS)}, or a Hub id "
            "that this machine can reach."
        ) from error
    assert isinstance(dataset, Dataset)
    return dataset


def _root(error: BaseException) -> str:
    """The first cause of an error, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0].rstrip('.')}"


def check_held_out(source: str, train: Sequence[Any], validation: Sequence[Any]) -> None:
    """Sees that validation has captions of its own, and warns of those that it shares. Class labels, of which there are few, may be the
    same: their noise is another.

    Args:
        source: what they were loaded from.
        train, validation: the prompts.

    Raises:
        PromptsError: it is one file, which has no splits.
    """
    held_out = {prompt for prompt in validation if isinstance(prompt, str)}
    shared = held_out & set(train)
    if not shared:
        return
    learnt_by_heart = "what is learnt of them by heart would count as learnt"
    if Path(source).suffix in FORMATS:
        raise PromptsError(
            f"{source} is one file, which has no splits: captions of training would be judged, and {learnt_by_heart}. Give a folder "
            "with train.jsonl and validation.jsonl; or, for a ladder's policy, `validation_split` null: then every caption is judged by a "
            "policy that did not see it."
        )
    warnings.warn(
        f"{len(shared)} of {len(held_out)} validation captions are training captions too, such as {min(shared)!r}: {learnt_by_heart}.",
        stacklevel=2,
    )


def check_counts(**counts: int | None) -> None:
    """Raises a ValueError for a setting, given by its name, that is neither None nor 1 or more."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"`{name}` must be 1 or more; got {count}.")


class ResumableSampler(DistributedSampler[Any]):
    """Shuffles by seed and epoch alone, and can begin in the middle of an epoch.

    Args:
        data, processes, rank, seed: as `DistributedSampler` takes them.
        skipped: cases of this rank to leave out, once.
    """

    def __init__(self, data: Any, processes: int, rank: int, seed: int, skipped: int = 0) -> None:
        super().__init__(data, processes, rank, seed=seed)
        self._skipped = skipped

    def __iter__(self) -> Iterator[Any]:
        skipped, self._skipped = self._skipped, 0
        return islice(super().__iter__(), skipped, None)


def _collate(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch whose prompts are as they were given: class labels as numbers too, which would be made a tensor otherwise."""
    return {"prompt": [row["prompt"] for row in rows], "index": torch.tensor([row["index"] for row in rows])}


class PromptDataModule(LightningDataModule):
    """Batches of prompts for training and validation.

    Args:
        source: a known set, folder, file or Hub id, as in `load_prompts`.
        column: the column that holds the prompt; by default as in `load_prompts`.
        batch_size: prompts per process and step.
        train_limit, validation_limit: use only so many prompts, spread evenly.
        train_split, validation_split: names of the splits.
        seed: of the order of the training prompts; None for that of the command line (`seed_everything`), or 0.
    """

    def __init__(
        self,
        source: str = "checkpoints/emoji-prompts",
        column: str | None = None,
        batch_size: int = 8,
        train_limit: int | None = None,
        validation_limit: int | None = None,
        train_split: str = "train",
        validation_split: str = "validation",
        seed: int | None = None,
    ) -> None:
        super().__init__()
        check_counts(batch_size=batch_size, train_limit=train_limit, validation_limit=validation_limit)
        self.source, self.column, self.batch_size = source, column, batch_size
        self.train_limit, self.validation_limit = train_limit, validation_limit
        self.train_split, self.validation_split = train_split, validation_split
        self.seed = seed or 0
        self._skipped_batches = 0

    def prompts(self, split: str) -> Dataset:
        """The prompts of `train` or `validation`."""
        names = {"train": self.train_split, "validation": self.validation_split}
        limits = {"train": self.train_limit, "validation": self.validation_limit}
        return load_prompts(self.source, names[split], self.column, limits[split])

    def setup(self, stage: str) -> None:
        self.train_prompts, self.validation_prompts = self.prompts("train"), self.prompts("validation")
        check_held_out(self.source, self.train_prompts["prompt"], self.validation_prompts["prompt"])
        processes = 1 if self.trainer is None else self.trainer.world_size
        if len(self.validation_prompts) < processes:
            raise PromptsError(
                f"{processes} processes need a validation prompt each; there are {len(self.validation_prompts)}. Raise `validation_limit`."
            )

    def train_dataloader(self) -> DataLoader[Any]:
        trainer = self.trainer
        assert trainer is not None
        skipped = self._skipped_batches * self.batch_size
        sampler = ResumableSampler(self.train_prompts, trainer.world_size, trainer.global_rank, self.seed, skipped)
        self._skipped_batches = 0
        return DataLoader(
            self.train_prompts,
            self.batch_size,
            sampler=sampler,
            drop_last=len(sampler) >= self.batch_size,
            collate_fn=_collate,
        )

    def val_dataloader(self) -> DataLoader[Any]:
        trainer = self.trainer
        assert trainer is not None
        # every prompt once: no rank is given another's to make their numbers equal
        sampler = UnrepeatedDistributedSampler(self.validation_prompts, trainer.world_size, trainer.global_rank, shuffle=False)
        return DataLoader(self.validation_prompts, self.batch_size, sampler=sampler, collate_fn=_collate)

    def state_dict(self) -> dict[str, Any]:
        """How far the epoch is, and by how many processes, for a run that goes on from its middle."""
        trainer = self.trainer
        assert trainer is not None
        progress = trainer.fit_loop.epoch_loop.batch_progress
        return {"batches": 0 if progress.is_last_batch else progress.current.ready, "processes": trainer.world_size}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from where `state_dict` was taken.

        Raises:
            PromptsError: in the middle of an epoch that other processes have shared otherwise.
        """
        trainer = self.trainer
        assert trainer is not None
        before, now = state_dict.get("processes", trainer.world_size), trainer.world_size  # older states do not say
        if state_dict["batches"] and before != now:
            raise PromptsError(
                f"The run stopped in the middle of an epoch of {before} processes; {now} would repeat some of its prompts and leave out "
                f"others. Go on with {before} (`trainer.devices`), or begin again in another folder (`--trainer.default_root_dir`)."
            )
        self._skipped_batches = int(state_dict["batches"])
