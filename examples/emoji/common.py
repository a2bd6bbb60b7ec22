"""What the scripts of this folder share: reading the dataset, and a Lightning trainer that resumes."""

import random
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, load_from_disk
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

NUM_TOKENS = 24


def load_split(folder: Path, split: str, styles: list[str]) -> Dataset:
    """Loads one split of the dataset that ``build_dataset.py`` made, in the given styles."""
    if not (folder / split).is_dir():
        raise FileNotFoundError(
            f"No dataset in {folder}. Make it with `python examples/emoji/build_dataset.py --output {folder}`."
        )
    dataset = load_from_disk(str(folder / split))
    return dataset.filter(lambda style: style in styles, input_columns="style")


def to_pixels(dataset: Dataset) -> Tensor:
    """Stacks the images of a split: uint8 `(images, 3, 64, 64)`."""
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in dataset["image"]])


def normalise(pixels: Tensor) -> Tensor:
    """Maps uint8 pixels to floats in [-1, 1]."""
    return pixels.float() / 127.5 - 1.0


def reword(caption: str, keywords: list[str], generator: random.Random) -> str:
    """The caption as it is, with an article, or with a few of its keywords behind it."""
    choice = generator.random()
    if choice < 0.5 or not keywords:
        return caption
    if choice < 0.65:
        return f"{'an' if caption[0].lower() in 'aeiou' else 'a'} {caption}"
    chosen = generator.sample(keywords, min(len(keywords), generator.randint(1, 3)))
    return ", ".join([caption, *chosen])


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Tensor:
    """Tokenises to int64 `(texts, NUM_TOKENS)`, padded."""
    encoded = tokenizer(texts, padding="max_length", max_length=NUM_TOKENS, truncation=True, return_tensors="pt")
    return encoded.input_ids


def image_grid(images: Tensor, columns: int) -> Tensor:
    """Tiles images `(count, 3, height, width)` into one picture `(3, rows·height, columns·width)`."""
    rows = images.unflatten(0, (-1, columns))
    return rows.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)


def fit(
    module: LightningModule,
    train: DataLoader,
    validation: DataLoader,
    output: Path,
    steps: int,
    validate_every: int,
    callbacks: list[Callback] | None = None,
) -> None:
    """Trains `module` for `steps` optimizer steps, logging to TensorBoard and saving every two minutes.

    The same command run again goes on from the last checkpoint.
    """
    seed_everything(0, verbose=False)
    checkpoints = output / "checkpoints"
    trainer = Trainer(
        accelerator="auto",
        devices=1,
        precision="bf16-mixed",
        max_steps=steps,
        logger=TensorBoardLogger(output, name=None, version=""),
        callbacks=[
            ModelCheckpoint(checkpoints, save_last=True, save_top_k=0, train_time_interval=timedelta(minutes=2)),
            LearningRateMonitor("step"),
            *(callbacks or []),
        ],
        gradient_clip_val=1.0,
        val_check_interval=validate_every,
        check_val_every_n_epoch=None,
        log_every_n_steps=20,
        num_sanity_val_steps=0,
        enable_model_summary=False,
    )
    last = checkpoints / "last.ckpt"
    trainer.fit(module, train, validation, ckpt_path=str(last) if last.is_file() else None)
    trainer.save_checkpoint(last)
