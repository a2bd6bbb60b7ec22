"""Policy folders: a model card beside the weights, and the way to the Hugging Face Hub and back."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError

from ada.policy import AdaPolicy

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
apply_blockdance(pipe, AdaPolicy.from_pretrained("{folder}"))
```

`policy.with_options(quality_weight=…)` moves along the curve between speed and quality (trained on {low:g} to {high:g}; larger
computes more); `policy.with_options(compute=0.8)` meets a compute budget.

| | |
| --- | --- |
| always computed | the first {prefix:.0%} of the steps, and the last {tail:.0%} |
| kinds of reuse | {kinds} |
| parameters | {parameters:,} |

## Validation while training

Greedy decisions on held-out prompts, mean over the smallest, the middle and the largest quality weight. Quality is relative to the
image with every step computed; compute saved is the share of the MACs of the steps after the prefix.

{table}
"""


def save_policy(policy: AdaPolicy, folder: Path, base_model_name: str, validation: Sequence[dict[str, float]]) -> None:
    """Writes `config.json`, `model.safetensors` and the model card `README.md`.

    Args:
        policy: the policy.
        folder: where to; made if it is not there.
        base_model_name: folder or Hub id of the base model, for the card.
        validation: measured figures, oldest first.
    """
    policy.save_pretrained(folder)
    low, high = policy.quality_weight_range
    data = ModelCardData(license="apache-2.0", library_name="blockdance-ada", tags=["blockdance-ada", "diffusers"])
    card = CARD.format(
        data=data.to_yaml(),
        base=base_model_name,
        folder=folder.as_posix() if not folder.is_absolute() else folder.name,
        transformer=policy.base_model.transformer,
        low=low,
        high=high,
        prefix=policy.prefix,
        tail=policy.forced_tail,
        kinds="; ".join(str(kind) for kind in policy.kinds),
        parameters=sum(parameter.numel() for parameter in policy.parameters()),
        table=validation_table(validation),
    )
    ModelCard(card).save(folder / "README.md")


def load_policy(source: str) -> AdaPolicy:
    """Loads a policy from a folder or the Hub.

    Raises:
        FileNotFoundError: there is none.
    """
    folder = Path(source)
    if (folder.exists() or source.startswith((".", "/", "checkpoints/"))) and not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"No policy in {source} (it has no config.json). Train one with `python train.py`, or give the folder or Hub id "
            "of a trained one."
        )
    try:
        policy: AdaPolicy = AdaPolicy.from_pretrained(source)
    except (OSError, HFValidationError) as error:
        reason = str(error).partition("\n")[0]
        raise FileNotFoundError(
            f"No policy could be loaded from {source}: {reason} Train one with `python train.py`, or give the folder or Hub "
            "id of a trained one."
        ) from error
    return policy.eval()


def validation_table(validation: Sequence[dict[str, float]]) -> str:
    """The validation figures as a Markdown table; a long run is thinned to a dozen rows."""
    if not validation:
        return "No validation was run."
    names = [name for name in validation[-1] if name != "rollouts"]
    stride = max(1, len(validation) // 12)
    chosen = [*validation[:-1:stride], validation[-1]]
    lines = ["| rollouts | " + " | ".join(name.replace("_", " ") for name in names) + " |", "| ---: " * (len(names) + 1) + "|"]
    lines += [f"| {row['rollouts']:.0f} | " + " | ".join(f"{row[name]:.4f}" for name in names) + " |" for row in chosen]
    return "\n".join(lines)
