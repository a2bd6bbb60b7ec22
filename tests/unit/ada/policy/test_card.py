"""Cards: what the Hub's own classes read of them, and what publishing changes."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import build_pixart_pipeline
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from policies import build_step_policy

from ada.policy import AdaPolicy, IncompatiblePolicyError
from ada.policy.card import address_card, write_card
from ada.rollouts import FrozenPipeline

SHIPPED = Path(__file__).parents[4] / "checkpoints" / "ada-emoji"


@pytest.fixture
def policy() -> AdaPolicy:
    return AdaPolicy.from_pretrained(SHIPPED)


@pytest.fixture
def folder(policy: AdaPolicy, tmp_path: Path) -> Path:
    """The shipped policy with its outcome, in a folder of its own, with a fresh card."""
    path = tmp_path / "policy"
    policy.save_pretrained(path)
    (path / "outcome.json").write_bytes((SHIPPED / "outcome.json").read_bytes())
    write_card(path, policy, "checkpoints/emoji-dit")
    return path


def write_evaluation(folder: Path, digest: str) -> Path:
    """An output folder of `evaluate.py`, as far as a card reads it."""
    folder.mkdir()
    for name in ("summary.md", "table.md"):
        (folder / name).write_text(f"| the {name} |")
    (folder / "damage-compute.png").write_bytes(b"a plot")
    estimates = {
        "bounded_damage": {"value": 0.05, "low": 0.03, "high": 0.09},
        "visibly_changed": {"value": 0.0, "low": None, "high": None},
    }
    rows: list[dict[str, Any]] = [
        {"name": "Full compute", "group": "plain", "reason": None, "estimates": estimates},
        {"name": "Ada mean 80%", "group": "ada", "reason": None, "estimates": estimates},
        {"name": "Ada mean 10%", "group": "ada", "reason": "cannot be met", "estimates": {}},
    ]
    settings = {"policy_weights": digest, "prompts": "someone/captions", "split": "test", "num_prompts": 128}
    (folder / "results.json").write_text(json.dumps({"settings": settings, "methods": rows}))
    return folder


def test_the_card_of_a_local_model_names_no_hub_id(folder: Path) -> None:
    card = ModelCard.load(folder / "README.md")
    assert card.data.get("base_model") is None
    assert 'from_pretrained("checkpoints/emoji-dit")' in card.text
    assert str(folder.parent) not in card.text, "no folder of this machine"


def test_a_card_says_whether_the_captions_were_held_out_or_the_policies_crossed(policy: AdaPolicy, folder: Path) -> None:
    """The shipped policy learnt from all captions; its figures are of eight others."""
    outcome = json.loads((SHIPPED / "outcome.json").read_text())
    for policies, heading, data in (
        (8, "On 1920 images, cross-fitted", "cross-fitted"),
        (1, "On 1920 images of held-out", "held-out"),
    ):
        (folder / "outcome.json").write_text(json.dumps(outcome | {"num_policies": policies}))
        write_card(folder, policy, "checkpoints/emoji-dit")
        card = ModelCard.load(folder / "README.md")
        assert heading in card.text
        assert ("by one of 8 policies that did not see its caption" in card.text) == (policies > 1)
        assert {result.dataset_name for result in card.data.eval_results} == {f"captions, {data}"}


def test_the_snippet_calls_the_pipeline_as_in_training(policy: AdaPolicy, folder: Path) -> None:
    """The figures are of these arguments; PixArt's pipeline refuses the embedded model's 64 pixels without one of them."""
    (folder / "training.json").write_bytes((SHIPPED / "training.json").read_bytes())
    write_card(folder, policy, "checkpoints/emoji-dit")
    arguments = (
        "num_inference_steps=20, guidance_scale=4.0, max_sequence_length=24, use_resolution_binning=False, clean_caption=False"
    )
    assert f"pipe(prompts, {arguments}).images" in ModelCard.load(folder / "README.md").text
    shipped = ModelCard.load(SHIPPED / "README.md").text
    assert all(argument in shipped for argument in arguments.split(", "))
    # the paper's algorithm holds the pipeline itself
    training = json.loads((folder / "training.json").read_text())
    pipeline = training["settings"]["data"]["init_args"].pop("pipeline")
    training["settings"]["model"] = {
        "init_args": {"pipeline": pipeline | {"init_args": {**pipeline["init_args"], "num_inference_steps": 28}}}
    }
    (folder / "training.json").write_text(json.dumps(training))
    write_card(folder, policy, "checkpoints/emoji-dit")
    assert f"pipe(prompts, {arguments.replace('20', '28')}).images" in ModelCard.load(folder / "README.md").text


@pytest.mark.parametrize(
    ("transformer", "task", "output"),
    [
        ("WanTransformer3DModel", "text-to-video", "frames"),
        ("StableAudioDiTModel", "text-to-audio", "audios"),
        ("Lumina2Transformer2DModel", "text-to-image", "images"),
        ("DiTTransformer2DModel", "unconditional-image-generation", "images"),
    ],
)
def test_the_card_says_what_the_model_makes(policy: AdaPolicy, folder: Path, transformer: str, task: str, output: str) -> None:
    """No matter whether the model's configuration tells the width of its prompts."""
    policy.base_model = replace(policy.base_model, transformer=transformer, prompt_width=0)
    write_card(folder, policy, "someone/base")
    card = ModelCard.load(folder / "README.md")
    assert card.data.pipeline_tag == task
    given = "class_labels" if task.startswith("unconditional") else "prompts"
    assert re.search(rf"^{output} = pipe\({given}, .*\)\.{output}$", card.text, re.MULTILINE)


def test_the_card_offers_the_wishes_that_the_policy_takes(policy: AdaPolicy, folder: Path, tmp_path: Path) -> None:
    wishes = {"compute=", "batch_compute=", "mean_compute=", "quality="}
    assert all(f"`{wish}`" in ModelCard.load(folder / "README.md").text for wish in wishes)
    frozen = FrozenPipeline(build_pixart_pipeline(), 8, {"max_sequence_length": 12, "use_resolution_binning": False})
    build_step_policy(frozen).save_pretrained(tmp_path)
    stepwise = AdaPolicy.from_pretrained(tmp_path)
    write_card(tmp_path, stepwise, "someone/base")
    text = ModelCard.load(tmp_path / "README.md").text
    assert {wish for wish in wishes if f"`{wish}`" in text} == {"compute="}


def test_metadata_survives_the_hubs_own_classes(policy: AdaPolicy, folder: Path, tmp_path: Path) -> None:
    """Written, read by `ModelCard`, turned into `model-index` and back; figures are those that were measured."""
    evaluation = write_evaluation(tmp_path / "evaluation", policy.digest())
    address_card(folder, policy, "someone/policy", "someone/base", evaluation)
    card = ModelCard.load(folder / "README.md")
    assert (card.data["base_model"], card.data["base_model_relation"], card.data["model_name"]) == (
        "someone/base",
        "adapter",
        "policy",
    )
    results = card.data.eval_results
    assert model_index_to_eval_results(eval_results_to_model_index("policy", results)) == ("policy", results)
    values = {result.metric_name: result.metric_value for result in results}
    level = next(one for one in json.loads((folder / "outcome.json").read_text())["levels"] if one["saved"] == 0.2)
    mean, low, high = level["advantage"]
    said = [float(part) for part in values["advantage over the best static mixture, 20% of the compute saved"].split(" ± ")]
    assert said == pytest.approx([mean, max(mean - low, high - mean)], abs=5e-5)
    assert values["bounded damage, Ada mean 80%"] == "0.0500 ± 0.0300"
    assert values["visibly changed, Ada mean 80%"] == "0.0000"
    assert not any("Full compute" in name or "10%" in name for name in values if "saved" not in name)
    assert all(math.isfinite(float(part)) for value in values.values() for part in value.split(" ± "))
    of_prompts = next(result for result in results if result.dataset_split == "test")
    assert (of_prompts.dataset_type, of_prompts.dataset_name) == ("someone/captions", "128 prompts of someone/captions")


def test_an_evaluation_goes_into_the_card_once(policy: AdaPolicy, folder: Path, tmp_path: Path) -> None:
    evaluation = write_evaluation(tmp_path / "evaluation", policy.digest())
    for _ in range(2):
        address_card(folder, policy, "someone/policy", None, evaluation)
    text = (folder / "README.md").read_text()
    assert text.count("| the summary.md |") == 1
    assert text.count("![Damage over the compute saved](damage-compute.png)") == 1
    assert (folder / "damage-compute.png").read_bytes() == b"a plot"
    assert (folder / "table.md").read_text() == "| the table.md |"


def test_an_evaluation_of_other_weights_is_refused(policy: AdaPolicy, folder: Path, tmp_path: Path) -> None:
    other = write_evaluation(tmp_path / "other", "0" * 16)
    with pytest.raises(IncompatiblePolicyError, match="of another policy"):
        address_card(folder, policy, "someone/policy", None, other)
    with pytest.raises(FileNotFoundError, match=r"no results\.json, summary\.md"):
        address_card(folder, policy, "someone/policy", None, tmp_path)


def test_what_a_hand_wrote_stays(policy: AdaPolicy, folder: Path) -> None:
    file = folder / "README.md"
    written = file.read_text().replace("license: apache-2.0", "license: mit").replace("## Limits", "Mine.\n\n## Limits")
    file.write_text(written)
    address_card(folder, policy, "someone/policy", "someone/base")
    assert "Mine." in file.read_text()
    assert ModelCard.load(file).data["license"] == "mit"
