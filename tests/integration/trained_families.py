"""Small random pipelines of many families, as `FrozenPipeline` takes them: how each call is told its prompts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from integration.pipelines import CASES, CONTROLNETS, FROM_IMAGE, PROMPTS, Case
from torch import Tensor

from ada.rollouts import FrozenPipeline

STEPS = 6


class RowsOf:
    """What a call takes of `PROMPTS`: embeddings made before, negative prompts, masks, images; a row of each per prompt."""

    def __init__(self, case: Case, without: Sequence[str]) -> None:
        given = {"output_type", *without}
        self._whole = {name: value for name, value in case.inputs(len(PROMPTS)).items() if name not in given}

    def __call__(self, prompts: Sequence[Any]) -> Mapping[str, Any]:
        rows = [PROMPTS.index(prompt) for prompt in prompts]
        return {name: self._take(value, rows) for name, value in self._whole.items()}

    @staticmethod
    def _take(value: Any, rows: list[int]) -> Any:
        if isinstance(value, Tensor) and len(value) == len(PROMPTS):
            return value[rows]
        return [value[row] for row in rows] if isinstance(value, list) else value


@dataclass(frozen=True)
class Trained:
    """A family that a policy is trained over.

    Args:
        build: makes the pipeline.
        arguments: of its call.
        inputs: how its call is told prompts; None where their own argument is enough.
        prompts: of training.
        output_type: what its call gives.
    """

    build: Callable[[], Any]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    inputs: Callable[[Sequence[Any]], Mapping[str, Any]] | None = None
    prompts: Sequence[Any] = tuple(PROMPTS[:3])
    output_type: str = "latent"

    def frozen(self, steps: int = STEPS) -> FrozenPipeline:
        """The pipeline, ready for rollouts."""
        pipeline = self.build()
        pipeline.set_progress_bar_config(disable=True)
        return FrozenPipeline(pipeline, steps, self.arguments, output_type=self.output_type, inputs=self.inputs)


def with_rows(case: Case, **arguments: Any) -> Trained:
    """A family whose call takes more of a prompt than its text."""
    return Trained(case.build, arguments, RowsOf(case, list(arguments)))


def with_words(name: str, **arguments: Any) -> Trained:
    """A family with text encoders, told prompts as it is by default."""
    case = CASES[name]
    told = {key: value for key, value in case.inputs(1).items() if key not in ("prompt", "output_type")}
    return Trained(case.build, told | {"negative_prompt": "bad"} | arguments)


EMBEDDED = (
    "aura_flow", "cogview4", "flux2", "flux2_klein", "hunyuan_dit", "hunyuan_video", "latte", "lumina2", "pixart_alpha", "pixart_sigma",
    "qwen_image", "sana", "stable_audio", "z_image",
)  # fmt: skip
WORDED = ("chroma", "cogvideox", "flux", "ltx", "mochi", "stable_diffusion_3", "wan")

TRAINED = {
    **{name: with_rows(CASES[name]) for name in EMBEDDED},
    **{name: with_words(name) for name in WORDED},
    "dit": Trained(CASES["dit"].build, prompts=(3, 0, 2), output_type="pt"),
    "flux_from_image": with_rows(FROM_IMAGE["flux"], strength=1.0),
    "stable_diffusion_3_from_image": with_rows(FROM_IMAGE["stable_diffusion_3"], strength=5 / 6),
    "flux_controlnet": with_rows(CONTROLNETS["flux"]),
    "flux_wide": with_words("flux", height=16, width=24),
    "pixart_sigma_wide": with_rows(CASES["pixart_sigma"], height=32, width=48),
}
