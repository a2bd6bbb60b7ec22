"""The rewards' folders and files as they lie on the Hub, small, with the weights that the recordings were made with."""

import json
from pathlib import Path
from typing import Any

import torch
from golden.formula import formula_state
from golden.vocabularies import save_bert, save_clip
from torch import Tensor

from ada.rewards.open_clip import load_open_clip

HERE = Path(__file__).parent
NUM_HEADS = 16


def recorded(name: str) -> dict[str, Any]:
    """A recording made by `golden.record`."""
    content: dict[str, Any] = json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))
    return content


def image_reward_state(recording: str = "image_reward") -> dict[str, Tensor]:
    """The original package's whole state dict."""
    return formula_state(recorded(recording)["shapes"])


def save_image_reward(folder: Path, recording: str = "image_reward") -> Path:
    """`ImageReward.pt` and a BERT tokenizer."""
    save_bert(folder)
    torch.save(image_reward_state(recording), folder / "ImageReward.pt")
    return folder


def save_hps(folder: Path) -> Path:
    """HPSv2.1's file and a CLIP tokenizer."""
    save_clip(folder, image_size=32)
    torch.save({"state_dict": formula_state(recorded("clip_rewards")["shapes"])}, folder / "HPS_v2.1_compressed.pt")
    return folder


def save_clip_model(folder: Path, activation: str) -> Path:
    """A transformers CLIP with tokenizer and image processor."""
    model = load_open_clip(save_hps(folder) / "HPS_v2.1_compressed.pt", NUM_HEADS, activation)
    model.save_pretrained(folder)
    return folder


def save_aesthetic_head(folder: Path) -> Path:
    """The aesthetic predictor's file."""
    torch.save(formula_state(recorded("clip_rewards")["head_shapes"]), folder / "aesthetic-model.pth")
    return folder
