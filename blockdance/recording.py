"""What a transformer gave in a generation before, replayed instead of computed."""

from typing import Any, Protocol


class Recording(Protocol):
    """Keeps what a transformer gives in a generation, and gives it again in later ones of the same prompts and noise.

    At a step that is replayed no block runs, so nothing is cached: the last two steps before the first that may reuse, which are those
    that a decider first sees, must be computed.
    """

    def replay(self, step: int, branch: str) -> Any | None:
        """The model's output for the whole batch at a step, or None where it is to be computed.

        Args:
            step: index of the denoising step.
            branch: which of the calls of this step: `cond`, `uncond`, …
        """

    def record(self, step: int, branch: str, output: Any) -> None:
        """Is shown what was computed."""
