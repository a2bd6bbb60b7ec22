"""Rewards: how good is an image of a prompt, by itself or beside its reference."""

from ada.rewards.base import Relative, Reward, RewardError, WeightedReward
from ada.rewards.clip import ClipFeatures, ClipScore, PerceptualDistance, load_features
from ada.rewards.fidelity import PSNR, SSIM

__all__ = [
    "PSNR",
    "SSIM",
    "ClipFeatures",
    "ClipScore",
    "PerceptualDistance",
    "Relative",
    "Reward",
    "RewardError",
    "WeightedReward",
    "load_features",
]
