"""BlockDance-Ada: policies that decide, per image, which denoising steps reuse cached block outputs."""

from ada.policy import AdaPolicy, IncompatiblePolicyError

__all__ = ["AdaPolicy", "IncompatiblePolicyError"]
