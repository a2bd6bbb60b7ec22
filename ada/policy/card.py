"""The model card of a policy folder: written from what lies in the folder, addressed to the Hub when it is published."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from ada.policy.figures import evaluation_results, evaluation_section, levels_table, outcome_results, pictures_section
from ada.policy.folder import CARD, OUTCOME, TRAINING
from ada.policy.hub import hub_id

if TYPE_CHECKING:
    from ada.policy.base import AdaPolicy

TYPICAL_SAVING = 0.2
"""The snippet asks for the measured level that is nearest to this."""
PAPER_STEPS = 20

BODY = """
# BlockDance-Ada policy for {base}

Decides, image by image, which denoising steps of `{transformer}` reuse cached block outputs
([BlockDance, arXiv 2503.15927](https://arxiv.org/abs/2503.15927)). It runs on this model and on its fine-tunes and LoRAs.

<!-- usage -->
<!-- /usage -->

| | |
| --- | --- |
| decides after steps | {steps} of {num_steps} |
| kinds of reuse | {kinds} |
| parameters | {parameters:,} |

{figures}

<!-- evaluation -->
<!-- /evaluation -->

## Training

{training}

## Limits

- The figures are those of the captions, sampler and number of steps that are named here. On others it runs, unmeasured.
- Quality is closeness to the image with every step computed. A policy makes images faster, never better, and some change visibly.
- Another architecture than `{transformer}` with {num_blocks} blocks is refused.

## Citation

```bibtex
@inproceedings{{zhang2025blockdance,
  title = {{BlockDance: Reuse Structurally Similar Spatio-Temporal Features to Accelerate Diffusion Transformers}},
  author = {{Zhang, Hui and Gao, Tingwei and Shao, Jie and Wu, Zuxuan}},
  booktitle = {{CVPR}},
  year = {{2025}},
  eprint = {{2503.15927}},
  archivePrefix = {{arXiv}}
}}
```
"""
OUTPUTS = {
    "text-to-image": "images", "unconditional-image-generation": "images", "text-to-video": "frames", "text-to-audio": "audios",
}  # fmt: skip
"""What a pipeline's output is called, by the task."""
USAGE = """## Use

With the package `blockdance-ada` installed:

```python
from diffusers import DiffusionPipeline
from blockdance import apply_blockdance

pipe = DiffusionPipeline.from_pretrained("{base}")
handle = apply_blockdance(pipe, "{address}"{wish})
{output} = pipe({prompts}, {arguments}).{output}
print(handle.report())  # per image: which steps reused, and what was saved
```

`compute=` gives every image the same share of the denoising compute{wishes}."""
LADDER_WISHES = """, `batch_compute=` every batch, each image as it needs beside the
others. With a measured curve, `mean_compute=` gives each image what it needs, for a mean over images, and `quality=` bounds the share
of images that change visibly"""


def write_card(folder: Path, policy: "AdaPolicy", base: str) -> None:
    """Writes a fresh `README.md` from the outcome, the training settings and the pictures that lie in the folder.

    Args:
        folder: of the policy.
        policy: the policy.
        base: folder or Hub id of the base model.
    """
    outcome, training = _read(folder / OUTCOME), _read(folder / TRAINING)
    figures = "No figures were measured." if not outcome else levels_table(outcome)
    text = BODY.format(
        base=f"[{base}](https://huggingface.co/{base})" if hub_id(base) else f"`{_shown(base)}`",
        transformer=policy.base_model.transformer,
        num_blocks=policy.base_model.num_blocks,
        steps=", ".join(map(str, policy.decision_steps(_num_steps(policy)))),
        num_steps=_num_steps(policy),
        kinds="; ".join(str(kind) for kind in policy.kinds),
        parameters=policy.num_parameters,
        figures="\n\n".join([figures, pictures_section(sorted(file.name for file in folder.glob("*.png")))]).strip(),
        training=_training_section(training) if training else "The settings were not kept.",
    )
    data = ModelCardData(license="apache-2.0", library_name="blockdance-ada", tags=["blockdance-ada", "diffusers"])
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n{text}")
    _address(card, folder, policy, _shown(str(folder)), base, None)
    card.save(folder / CARD)


def address_card(folder: Path, policy: "AdaPolicy", repo_id: str, base: str | None, evaluation: Path | None = None) -> None:
    """Turns a folder's card into a Hub repository's: ids in snippet and metadata, figures. What else it says stays as it is.

    Args:
        folder: of the policy; its card is rewritten, and the evaluation's table and plot are copied to it.
        policy: the policy.
        repo_id: the repository.
        base: Hub id of the base model; None where it has none.
        evaluation: output folder of `evaluate.py`.

    Raises:
        FileNotFoundError: `evaluation` is no such folder.
        IncompatiblePolicyError: it is another policy's.
        ValueError: the card's metadata cannot be read.
    """
    try:
        card = ModelCard.load(folder / CARD)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(
            f"The metadata of the policy's {CARD}, between its first two lines `---`, cannot be read: {' '.join(str(error).split())}. "
            "Mend it there; nothing was published."
        ) from error
    _address(card, folder, policy, repo_id, base, evaluation)
    card.save(folder / CARD)


def _address(
    card: ModelCard, folder: Path, policy: "AdaPolicy", address: str, base: str | None, evaluation: Path | None
) -> None:
    """Fills in what depends on where policy and base model are found, and on what was measured."""
    outcome, training = _read(folder / OUTCOME), _read(folder / TRAINING)
    data_settings, model_settings = (
        training.get("settings", {}).get(part, {}).get("init_args", {}) for part in ("data", "model")
    )
    task, source = _task(policy), str(data_settings.get("source", "captions"))
    dataset = training["dataset"] if "dataset" in training else hub_id(source)
    results = outcome_results(outcome, task, source, dataset) if outcome else []
    if evaluation is not None:
        results += evaluation_results(evaluation, task, policy.digest())
        card.text = _with_section(card.text, "evaluation", evaluation_section(evaluation, folder))
    data: Any = card.data
    data.pipeline_tag = data.pipeline_tag or task
    data.datasets = data.datasets or ([dataset] if dataset else None)
    if base and hub_id(base):
        data.base_model, data.base_model_relation = base, "adapter"
    if results:
        data.model_name, data.eval_results = address.rpartition("/")[2], results
    saved = [level["saved"] for level in outcome.get("levels", [])]
    wish = f", mean_compute={1 - min(saved, key=lambda one: abs(one - TYPICAL_SAVING)):g}" if saved else ""
    # as in training, for which the figures are
    pipeline_settings = (data_settings.get("pipeline") or model_settings.get("pipeline") or {}).get("init_args", {})
    steps = pipeline_settings.get("num_inference_steps") or _num_steps(policy)
    call = {"num_inference_steps": steps, **(pipeline_settings.get("arguments") or {})}
    arguments = ", ".join(f"{name}={value!r}" for name, value in call.items())
    usage = USAGE.format(
        prompts="class_labels" if task == "unconditional-image-generation" else "prompts",
        base=_shown(base or "path/to/the/base/model"), address=address, wish=wish, arguments=arguments, output=OUTPUTS[task],
        wishes=LADDER_WISHES if "ladder" in policy.config else "",
    )  # fmt: skip
    card.text = _with_section(card.text, "usage", usage)


def _with_section(text: str, name: str, body: str) -> str:
    """The text with the section between two comments replaced; where somebody took the comments out, it stays as it is."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    return re.sub(f"{start}.*?{end}", lambda _: f"{start}\n{body}\n{end}", text, flags=re.DOTALL)


def _training_section(training: Mapping[str, Any]) -> str:
    settings = yaml.safe_dump(training["settings"], sort_keys=False, allow_unicode=True, width=120).strip()
    return (
        f"Seed {training['seed']}; {training['minutes']:.1f} minutes on {training['hardware']}, but for rollouts that were kept from an "
        f"earlier run.\n\n```yaml\n{settings}\n```"
    )


def _task(policy: "AdaPolicy") -> str:
    """The Hub's name of what the base model does."""
    name = policy.base_model.transformer
    if "3D" in name or "Video" in name:
        return "text-to-video"
    if "Audio" in name:
        return "text-to-audio"
    return "unconditional-image-generation" if name == "DiTTransformer2DModel" else "text-to-image"


def _num_steps(policy: "AdaPolicy") -> int:
    """The number of denoising steps that the policy was trained at; the paper's where it is not kept."""
    ladder = policy.config.get("ladder")
    return len(ladder["rungs"][0]) if ladder else PAPER_STEPS


def _shown(path: str) -> str:
    """A path as a card may show it: of an absolute one, which belongs to one machine, only the name."""
    return Path(path).name if Path(path).is_absolute() else Path(path).as_posix()


def _read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return content
