"""Errors that name what was found, what was expected and what to do."""


class BlockDanceError(ValueError):
    """Base of this package's errors."""


class UnsupportedModelError(BlockDanceError):
    """The model's blocks were not found, or BlockDance has nothing to do on it."""


class ScheduleError(BlockDanceError):
    """A schedule or plan that cannot be carried out."""


class StepUnknownError(BlockDanceError):
    """The denoising step of a call could not be determined."""
