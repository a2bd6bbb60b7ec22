"""What a transformer gave in a generation before, replayed instead of computed."""

from typing import Any, NamedTuple, Protocol


class Recorded(NamedTuple):
    """What one call of the transformer gave, and what its blocks left for later steps.

    Args:
        output: the model's output for the whole batch.
        kept: for each of the branch's caches what this call put there, rows first; None where no later step reads it.
    """

    output: Any
    kept: tuple[Any, ...] | None = None


class Recording(Protocol):
    """Keeps what a transformer gives in a generation, and gives it again in later ones of the same prompts, noise and kinds of reuse.

    At a step that is replayed no block runs. Of the last two steps before the first that may reuse, which are those that caches keep and
    a decider first sees, it must know what was kept, or have them computed.
    """

    def replay(self, step: int, branch: str) -> Recorded | None:
        """What is known of a step, or None where it is to be computed.

        Args:
            step: index of the denoising step.
            branch: which of the calls of this step: `cond`, `uncond`, …
        """

    def record(self, step: int, branch: str, recorded: Recorded) -> None:
        """Is shown what was computed; what is kept lies in memory that later steps write over."""
