"""Prompts, on Hugging Face `datasets`."""

from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, DistributedSampler


def load_prompts(source: str, split: str, column: str = "prompt", limit: int | None = None) -> Dataset:
    """Loads prompts as a dataset with the columns `prompt` and `index`.

    Args:
        source: a folder with `train.jsonl`, `validation.jsonl`, `test.jsonl`; a file (JSON lines, CSV, Parquet or text, one prompt a
            line); or the Hub id of a dataset.
        split: name of the split.
        column: the column that holds the prompt.
        limit: take only so many, spread evenly over the split.

    Raises:
        FileNotFoundError: `source` looks like a path that is not there, or the folder lacks the split.
        ValueError: the dataset lacks the column.
    """
    path = Path(source)
    formats = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}
    if path.is_dir() or path.suffix in formats or source.startswith((".", "/", "checkpoints/")):
        file = path / f"{split}.jsonl" if path.is_dir() or not path.suffix else path
        if not file.is_file():
            raise FileNotFoundError(
                f"No prompts in {file}. Give a folder with train.jsonl, validation.jsonl and test.jsonl, a single file, or a Hub id."
            )
        dataset = load_dataset(formats[file.suffix], data_files={split: str(file)}, split=split)
        column = "text" if file.suffix == ".txt" else column
    else:
        dataset = load_dataset(source, split=split)
    assert isinstance(dataset, Dataset)
    if column not in dataset.column_names:
        raise ValueError(f"{source} has no column `{column}`; it has {', '.join(dataset.column_names)}. Set `column`.")
    prompts = list(dataset[column])
    chosen = list(range(len(prompts)))
    if limit is not None and limit < len(prompts):
        chosen = [position * len(prompts) // limit for position in range(limit)]
    return Dataset.from_dict({"prompt": [prompts[index] for index in chosen], "index": chosen})


class PromptDataModule(LightningDataModule):
    """Batches of prompts for training and validation.

    Args:
        source: folder, file or Hub id, as in `load_prompts`.
        column: the column that holds the prompt.
        batch_size: prompts per process and step.
        train_limit, validation_limit: use only so many prompts, spread evenly.
        train_split, validation_split: names of the splits.
        seed: of the order of the training prompts.
    """

    def __init__(
        self,
        source: str = "checkpoints/emoji-prompts",
        column: str = "prompt",
        batch_size: int = 8,
        train_limit: int | None = None,
        validation_limit: int | None = None,
        train_split: str = "train",
        validation_split: str = "validation",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be 1 or more; got {batch_size}.")
        self.source, self.column, self.batch_size = source, column, batch_size
        self.train_limit, self.validation_limit = train_limit, validation_limit
        self.train_split, self.validation_split = train_split, validation_split
        self.seed = seed

    def setup(self, stage: str) -> None:
        self.train_prompts = load_prompts(self.source, self.train_split, self.column, self.train_limit)
        self.validation_prompts = load_prompts(self.source, self.validation_split, self.column, self.validation_limit)

    def train_dataloader(self) -> DataLoader[Any]:
        trainer = self.trainer
        assert trainer is not None
        # its order depends on seed and epoch alone, so that a resumed run sees the same batches
        sampler: DistributedSampler[Any] = DistributedSampler(
            self.train_prompts, trainer.world_size, trainer.global_rank, seed=self.seed
        )
        return DataLoader(
            self.train_prompts,
            self.batch_size,
            sampler=sampler,
            drop_last=len(sampler) >= self.batch_size,
        )

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.validation_prompts, self.batch_size)
