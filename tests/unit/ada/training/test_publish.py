"""Publishing at the end of training."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import auto_parser

from ada.evaluation import EvaluationOptions
from ada.policy import AdaPolicy, HubError
from ada.training import PushPolicy
from ada.training.publish import evaluation_command

CONFIGS = Path(__file__).parents[4] / "configs"
SHIPPED = Path(__file__).parents[4] / "checkpoints" / "ada-emoji"


def test_a_policy_that_the_hub_refuses_is_kept_and_told_how_to_publish(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object, **options: object) -> str:
        raise HubError("The Hub refuses.")

    monkeypatch.setattr(AdaPolicy, "push_to_hub", refuse)
    with pytest.raises(HubError) as error:
        PushPolicy("someone/policy").publish(SHIPPED)
    command = f"`python -m ada push --policy {SHIPPED} --repo_id someone/policy`"
    assert str(error.value) == f"The Hub refuses. The trained policy is in {SHIPPED}: {command}."


def settings(model: str, **data: Any) -> dict[str, Any]:
    pipeline = {"model": model, "num_inference_steps": 28, "arguments": {"guidance_scale": 4.5}, "dtype": "bfloat16"}
    reward = {"rewards": {"near": {"class_path": "ada.rewards.PerceptualDistance", "init_args": {"model": "some/dino"}}}}
    given = {"source": "captions/", "train_split": "train", "ladder": "ladder.json", "visible_damage": 0.01, "column": None}
    given |= {"pipeline": {"init_args": pipeline}, "reward": {"class_path": "ada.rewards.WeightedReward", "init_args": reward}}
    return {"model": {"init_args": {}}, "data": {"init_args": given | data}}


def test_the_embedded_model_needs_no_options_but_those_that_are_not_as_usual() -> None:
    usual = yaml.safe_load((CONFIGS / "default.yaml").read_text())
    assert evaluation_command(Path("runs/default/policy"), usual) == "python evaluate.py --policy runs/default/policy"
    words = shlex.split(evaluation_command(Path("policy"), settings("checkpoints/emoji-dit")))
    assert words[2:] == [
        "--policy", "policy", "--num_inference_steps", "28", "--arguments", '{"guidance_scale": 4.5}', "--dtype", "bfloat16",
        "--perceptual", "some/dino", "--visible_damage", "0.01", "--ladder", "ladder.json",
    ]  # fmt: skip


def test_another_model_is_compared_with_the_settings_it_was_trained_with() -> None:
    words = shlex.split(evaluation_command(Path("my runs/policy"), settings("some/model", validation_split="validation")))
    given = dict(zip(words[2::2], words[3::2], strict=True))
    assert words[:2] == ["python", "evaluate.py"]
    assert json.loads(given.pop("--arguments")) == {"guidance_scale": 4.5}
    assert given == {
        "--policy": "my runs/policy", "--base_model": "some/model", "--num_inference_steps": "28", "--dtype": "bfloat16",
        "--scorer": "openai/clip-vit-large-patch14", "--perceptual": "some/dino", "--visible_damage": "0.01", "--ladder": "ladder.json",
        "--prompts": "captions/",
        "--split": "validation", "--search_prompts": "captions/", "--search_split": "train",
    }  # fmt: skip
    assert "--prompts CAPTIONS_THAT_IT_HAS_NOT_SEEN" in evaluation_command(Path("policy"), settings("some/model"))
    named = evaluation_command(Path("policy"), settings("some/model", column="my text"))
    assert "--column 'my text'" in named
    assert "--search_column 'my text'" in named


def test_a_distance_that_nobody_measured_gives_no_threshold() -> None:
    """τ of another reward is not one of the scorer's distance."""
    preference = {"class_path": "ada.rewards.ImageReward"}
    command = evaluation_command(Path("policy"), settings("some/model", reward=preference))
    assert "--perceptual" not in command
    assert "--visible_damage" not in command


def test_a_pipeline_of_ones_own_class_is_compared_by_the_function() -> None:
    own = {"class_path": "mine.MyPipeline"}  # which takes no settings
    loop = {"class_path": "ada.rollouts.FrozenPipeline", "init_args": {"model": {"class_path": "mine.Loop"}}}
    for pipeline in (own, loop):
        assert evaluation_command(Path("policy"), settings("", pipeline=pipeline)).startswith("ada.evaluation.evaluate(")


@pytest.mark.parametrize(
    "config", sorted(path.name for path in CONFIGS.glob("*.yaml") if path.name not in ("default.yaml", "search.yaml"))
)
def test_the_command_of_every_published_configuration_is_understood(config: str) -> None:
    given = {"model": {"init_args": {}}} | yaml.safe_load((CONFIGS / config).read_text())
    words = shlex.split(evaluation_command(Path("policy"), given))[2:]
    options = auto_parser(EvaluationOptions, as_positional=False).parse_args(words)
    if "paper" not in config:
        assert (options.perceptual, options.visible_damage) == ("facebook/dinov2-base", 0.02)
