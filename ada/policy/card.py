"""The model card of a policy folder, with measured figures."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ada.policy.base import AdaPolicy

CARD = """---
{data}
---

# BlockDance-Ada policy for {base}

Decides, image by image, which denoising steps of `{transformer}` reuse cached block outputs
([BlockDance, arXiv 2503.15927](https://arxiv.org/abs/2503.15927)).

```python
from diffusers import DiffusionPipeline
from ada import AdaPolicy
from blockdance import apply_blockdance

pipe = DiffusionPipeline.from_pretrained("{base}")
apply_blockdance(pipe, AdaPolicy.from_pretrained("{folder}"){options})
```

| | |
| --- | --- |
| decides after steps | {steps} of 20 |
| kinds of reuse | {kinds} |
| parameters | {parameters:,} |

{figures}
"""


def write_card(folder: Path, policy: AdaPolicy, base: str, outcome: Any) -> None:
    """Writes `README.md`.

    Args:
        folder: of the policy.
        policy: the policy.
        base: folder or Hub id of the base model.
        outcome: the measured `Outcome` on held-out captions; None where there is none.
    """
    is_hub_id = not Path(base).exists()
    data = ModelCardData(
        license="apache-2.0",
        library_name="blockdance-ada",
        tags=["blockdance-ada", "diffusers"],
        base_model=base if is_hub_id else None,
        base_model_relation="adapter" if is_hub_id else None,
    )
    card = CARD.format(
        data=data.to_yaml(),
        base=base,
        folder=folder.as_posix() if not folder.is_absolute() else folder.name,
        transformer=policy.base_model.transformer,
        options=".with_options(mean_compute=0.8)" if outcome is not None else "",
        steps=", ".join(map(str, policy.decision_steps(20))),
        kinds="; ".join(str(kind) for kind in policy.kinds),
        parameters=policy.num_parameters,
        figures="No figures were measured." if outcome is None else figures(outcome),
    )
    ModelCard(card).save(folder / "README.md")


def figures(outcome: Any) -> str:
    """The measured levels as a Markdown table."""
    lines = [
        f"## On {outcome.num_cases} held-out images",
        "",
        "Damage is d/(d + τ) of the distance d to the image with every step computed, between 0 and 1, one half where a person just sees "
        "the change. Mixture: the best two static schedules, drawn without looking at the image, at the same mean compute. Oracle: the "
        "best choice that hindsight could make. ± and brackets are 95 % intervals, paired over images.",
        "",
        "| compute saved | damage | mixture of static | oracle | advantage | gap closed | visibly changed | mixture |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for level in outcome.levels:
        mean, low, high = level.advantage
        lines.append(
            f"| {level.saved:.0%} | {level.policy:.4f} | {level.mixture:.4f} | {level.oracle:.4f} | {mean:+.4f} ({low:+.4f} … {high:+.4f}) "
            f"| {level.gap_closed:.0%} | {level.changed_policy:.1%} | {level.changed_mixture:.1%} |"
        )
    return "\n".join(lines)
