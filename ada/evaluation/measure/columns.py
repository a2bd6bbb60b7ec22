"""The names of what is measured, and how each is shown."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

QUALITY = "quality"
DISTANCE = "perceptual_distance"
BOUNDED = "bounded_damage"
VISIBLE = "visibly_changed"
LATENT = "latent_distance"
WORST_FRAME = "worst_frame_distance"
FLICKER = "flicker"
FRECHET = "frechet_distance"
MEDIAN = "median_distance"
TAIL = "tail_distance"
COMPUTE_SAVED = "compute_saved"
MACS = "macs_per_image"
OWN_MACS = "own_macs_per_image"
SECONDS = "seconds_per_image"
SECONDS_ALONE = "seconds_alone"
SPEED_UP = "speed_up"
SPEED_UP_ALONE = "speed_up_alone"
CACHE = "cache_bytes"
MEMORY = "peak_bytes"
SCHEDULES = "num_schedules"
COSTS = (COMPUTE_SAVED, MACS, OWN_MACS, SECONDS, SECONDS_ALONE, SPEED_UP, SPEED_UP_ALONE, CACHE, MEMORY, SCHEDULES)
EDGE_DENSITY, PROMPT_LENGTH, SENSITIVITY = "edge_density", "prompt_length", "sensitivity"
"""What images differ in: of the reference, of the prompt, and of what searched schedules do to it."""
SAME_LATENCY, SAME_COMPUTE, STATIC_MIXTURE = "same_latency", "same_compute", "static_mixture"
"""What a method is set beside."""


@dataclass(frozen=True)
class Column:
    """How a measured quantity is shown: multiplied by `scale`, with `decimals` places and its unit."""

    heading: str
    higher_is_better: bool = True
    decimals: int = 2
    scale: float = 1.0
    unit: str = ""
    in_table: bool = True
    in_terminal: bool = True

    @property
    def heading_with_arrow(self) -> str:
        """Heading and unit with an arrow that points to better."""
        return f"{self.heading_with_unit} {'↑' if self.higher_is_better else '↓'}"

    @property
    def heading_with_unit(self) -> str:
        """Heading and unit."""
        return f"{self.heading}, {self.unit}" if self.unit else self.heading


VIDEO_COLUMNS = {
    WORST_FRAME: Column("Worst frame's perceptual distance", higher_is_better=False, decimals=4),
    FLICKER: Column("Flicker beside reference", higher_is_better=False, decimals=3),
}


def all_columns(metrics: Mapping[str, Column]) -> dict[str, Column]:
    """The headline metrics, the others, their differences to the chosen row, and what every method is measured by besides."""
    first, column = next(iter(metrics.items()))
    headlines = {
        BOUNDED: Column("Bounded damage", higher_is_better=False, decimals=3),
        VISIBLE: Column("Visibly changed", higher_is_better=False, decimals=1, scale=100.0, unit="%"),
        MEDIAN: Column("Median distance", higher_is_better=False, decimals=4),
        TAIL: Column("Distance, 0.9 quantile", higher_is_better=False, decimals=4, in_terminal=False),
    }
    return {
        **(headlines if DISTANCE in metrics else {}),
        first: column,
        difference_of(first): replace(column, heading=f"Δ {column.heading.lower()}", in_table=True, in_terminal=True),
        **{name: column for name, column in metrics.items() if name != first},
        LATENT: Column("Latent distance", higher_is_better=False, decimals=4, in_terminal=False),
        FRECHET: Column("Fréchet distance", higher_is_better=False, decimals=4, in_terminal=False),
        COMPUTE_SAVED: Column("Compute saved", decimals=1, scale=100.0, unit="%"),
        MACS: Column("Compute", higher_is_better=False, decimals=2, scale=1e-9, unit="GMACs/image", in_terminal=False),
        OWN_MACS: Column("Decider", higher_is_better=False, decimals=3, scale=1e-9, unit="GMACs/image", in_terminal=False),
        SECONDS: Column("Latency", higher_is_better=False, decimals=3, unit="s/image"),
        SPEED_UP: Column("Speed-up", decimals=2, unit="×"),
        SECONDS_ALONE: Column("Latency, batch 1", higher_is_better=False, decimals=3, unit="s", in_terminal=False),
        SPEED_UP_ALONE: Column("Speed-up, batch 1", decimals=2, unit="×"),
        SCHEDULES: Column("Schedules", decimals=0, unit="distinct", in_terminal=False),
        CACHE: Column("Cached", higher_is_better=False, decimals=2, scale=2**-20, unit="MiB/batch", in_terminal=False),
        MEMORY: Column("Peak memory", higher_is_better=False, decimals=1, scale=2**-20, unit="MiB/batch", in_terminal=False),
    }


def difference_of(metric: str) -> str:
    """Name of a metric's difference to the chosen row."""
    return f"{metric}_difference"
