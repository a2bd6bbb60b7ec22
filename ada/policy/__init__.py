"""Policies: what they see, how they decide, their folders."""

from ada.policy.base import AdaPolicy, BaseModel
from ada.policy.curve import Curve
from ada.policy.folder import IncompatiblePolicyError
from ada.policy.hub import HubError, PolicyNotFoundError
from ada.policy.ladder import LadderPolicy
from ada.policy.per_image import PerImage
from ada.policy.sight import describe
from ada.policy.steps import StepPolicy
from ada.policy.wishes import WishError

__all__ = [
    "AdaPolicy",
    "BaseModel",
    "Curve",
    "HubError",
    "IncompatiblePolicyError",
    "LadderPolicy",
    "PerImage",
    "PolicyNotFoundError",
    "StepPolicy",
    "WishError",
    "describe",
]
