"""Rewards: how good is an image of a prompt, by itself or beside its reference. `docs/rewards.md` says which to choose."""

from ada.rewards.aesthetic import AestheticScore
from ada.rewards.base import Relative, Reward, RewardError, WeightsError
from ada.rewards.clip import ClipFeatures, load_features
from ada.rewards.clip_score import ClipScore
from ada.rewards.fidelity import PSNR, SSIM, LatentDistance, PerceptualDistance
from ada.rewards.hps import HPS
from ada.rewards.image_reward import ImageReward
from ada.rewards.pick_score import PickScore
from ada.rewards.video import TemporalConsistency, VideoReward
from ada.rewards.weighted import WeightedReward

__all__ = [
    "HPS",
    "PSNR",
    "SSIM",
    "AestheticScore",
    "ClipFeatures",
    "ClipScore",
    "ImageReward",
    "LatentDistance",
    "PerceptualDistance",
    "PickScore",
    "Relative",
    "Reward",
    "RewardError",
    "TemporalConsistency",
    "VideoReward",
    "WeightedReward",
    "WeightsError",
    "load_features",
]
