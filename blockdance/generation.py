"""What the controller keeps during one generation."""

from dataclasses import dataclass, field
from typing import Any

from blockdance.cost import CallShape
from blockdance.observation import Observer
from blockdance.schedule import ReuseSchedule
from blockdance.state import ReuseState


@dataclass
class Call:
    """One forward call as the report needs it."""

    shape: CallShape
    actions: list[int]


@dataclass
class Generation:
    """One pass through the denoising loop; every guidance branch that has calls of its own has a state of its own."""

    num_images: int
    schedule: ReuseSchedule | None
    taken: list[list[int]]
    states: dict[str, ReuseState] = field(default_factory=dict)
    sizes: dict[str, Any] = field(default_factory=dict)
    shapes: dict[str, tuple[list[Any], CallShape]] = field(default_factory=dict)
    last_step: dict[str, int] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    observed: dict[str, Any] | None = None
    observer: Observer = field(default_factory=Observer)
    seen_steps: set[int] = field(default_factory=set)
    peak_cache_bytes: int = 0

    @property
    def cache_bytes(self) -> int:
        return sum(state.num_bytes for state in self.states.values())
