"""What goes with a policy when training exports it, and the callback that publishes it."""

import json
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback

from ada.policy import AdaPolicy, HubError
from ada.policy.card import write_card
from ada.policy.folder import OUTCOME, TRAINING
from ada.policy.hub import hub_id, make_repository
from ada.processor import processor_name
from ada.rewards.damage import VISIBLE_DISTANCE
from ada.rollouts import EMBEDDED, EMBEDDED_ARGUMENTS
from ada.training.errors import RunError
from ada.training.outcome import Outcome

SCORER = "openai/clip-vit-large-patch14"
"""What measures quality beside other models than the embedded one, whose scorer knows emoji alone."""
USUAL: dict[str, Any] = {
    "num_inference_steps": 20, "arguments": EMBEDDED_ARGUMENTS, "dtype": "float32", "perceptual": "checkpoints/emoji-scorer",
    "visible_damage": VISIBLE_DISTANCE, "ladder": "configs/ladders/emoji.json",
}  # fmt: skip
"""How `evaluate.py` runs the embedded model by default."""


class PushPolicy(Callback):
    """Publishes the policy that `train.py` exports at the end of training, with its card and figures.

    The repository is made before training begins, so a missing login is said then and not hours later. In YAML:

        trainer:
          callbacks:
            - class_path: ada.training.PushPolicy
              init_args: {repo_id: user/name}

    Args:
        repo_id: `user/name` on the Hub; made if it is not there.
        base_model: Hub id of the base model, where the pipeline's is a local copy.
        revision: branch to publish on; by default the main one.
        private: whether a new repository is private.
    """

    def __init__(
        self, repo_id: str, base_model: str | None = None, revision: str | None = None, private: bool | None = None
    ) -> None:
        self.repo_id, self.base_model, self.revision, self.private = repo_id, base_model, revision, private

    def prepare(self) -> None:
        """Makes the repository. Lightning's own hooks come too late for that: the data module's rollouts come before them.

        Raises:
            RunError: `base_model` is no Hub id.
            HubError: the Hub cannot be reached, or refuses.
        """
        if self.base_model is not None and hub_id(self.base_model) is None:
            raise RunError(
                f"`base_model` of PushPolicy must be the Hub id of the base model, `user/name`; got {self.base_model!r}."
            )
        make_repository(self.repo_id, private=self.private)

    def publish(self, folder: Path) -> None:
        """Publishes an exported policy.

        Args:
            folder: of the policy.

        Raises:
            HubError: the Hub cannot be reached, or refuses; it says how to publish the policy by hand.
        """
        try:
            address = AdaPolicy.from_pretrained(folder).push_to_hub(
                self.repo_id, base_model=self.base_model, revision=self.revision, private=self.private
            )
        except HubError as error:
            raise HubError(
                f"{error} The trained policy is in {folder}: `python -m ada push --policy {folder} --repo_id {self.repo_id}`."
            ) from error
        print(f"published   {address}")


def describe_training(identity: dict[str, Any], minutes: float, device: torch.device) -> dict[str, Any]:
    """What a card says of how a policy came to be.

    Args:
        identity: the run's settings, as JSON.
        minutes: how long it took.
        device: what it ran on.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    settings = {name: _without_machine(value) for name, value in identity.items() if name != "seed_everything"}
    source = identity.get("data", {}).get("init_args", {}).get("source")
    return {
        "dataset": hub_id(str(source)),  # asked here, where a folder of captions is there to be seen
        "seed": identity.get("seed_everything"),
        "minutes": minutes,
        "hardware": f"{name}, {torch.get_num_threads()} threads" if device.type == "cpu" else name,
        "settings": settings,
    }


def evaluation_command(policy: Path, settings: Mapping[str, Any]) -> str:
    """The command that compares a policy with everything else, on the model and with the settings that it was trained with; where no
    settings can say which model that is, as of a class of one's own, the function that does.

    Args:
        policy: its folder.
        settings: of the run, as JSON.
    """
    model, data = (settings[part].get("init_args", {}) for part in ("model", "data"))
    pipeline = (data.get("pipeline") or model.get("pipeline") or {}).get("init_args", {})
    if not isinstance(pipeline.get("model"), str):
        return "ada.evaluation.evaluate(frozen_pipeline, policy, request)"
    perceptual, column = _perceptual_model(settings), data.get("column")
    options: dict[str, Any] = {
        "num_inference_steps": pipeline.get("num_inference_steps"),
        "arguments": pipeline.get("arguments") or {},
        "dtype": pipeline.get("dtype"),
        "perceptual": perceptual,
        "visible_damage": data.get("visible_damage") if perceptual else None,
        "ladder": data.get("ladder"),
    }
    if pipeline["model"] == EMBEDDED:  # the rest is the command's default
        options = {name: value for name, value in options.items() if value != USUAL[name]}
    else:
        options |= {
            "base_model": pipeline["model"],
            "scorer": SCORER,
            "prompts": "CAPTIONS_THAT_IT_HAS_NOT_SEEN" if data.get("validation_split") is None else data["source"],
            "split": data.get("validation_split"),
            "column": column,
            "search_prompts": "null" if pipeline.get("prompt_argument") else data["source"],
            "search_split": data.get("train_split"),
            "search_column": column,
        }
    words = ["python evaluate.py", f"--policy {shlex.quote(str(policy))}"]
    for name, value in options.items():
        if value is not None:
            words.append(f"--{name} {shlex.quote(json.dumps(value) if isinstance(value, dict) else str(value))}")
    return " ".join(words)


def _perceptual_model(settings: Any) -> str | None:
    """The network that images were compared by, wherever the settings name it."""
    if isinstance(settings, list):
        return next(filter(None, map(_perceptual_model, settings)), None)
    if not isinstance(settings, Mapping):
        return None
    if str(settings.get("class_path", "")).endswith("PerceptualDistance"):
        model: str | None = settings.get("init_args", {}).get("model")
        return model
    return _perceptual_model(list(settings.values()))


def write_figures(
    folder: Path, policy: AdaPolicy, model: str, training: dict[str, Any], outcome: Outcome | None, pictures: Path
) -> None:
    """Writes a policy folder's card, and what it is made of.

    Args:
        folder: of the policy.
        policy: the policy.
        model: folder or Hub id of the base model.
        training: as `describe_training` gives it.
        outcome: what was measured on held-out captions, if anything.
        pictures: folder of pictures, which are copied.
    """
    contents = {TRAINING: training, OUTCOME: None if outcome is None else outcome.to_dict()}
    for name, content in contents.items():
        if content is not None:
            (folder / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for picture in ("outcome.png", "decisions.png"):
        if outcome is not None and (pictures / picture).is_file():
            shutil.copyfile(pictures / picture, folder / picture)
    write_card(folder, policy, model)


def _without_machine(value: Any) -> Any:
    """Settings without this machine's folders: of an absolute path, only the name is left."""
    if isinstance(value, dict):
        return {name: _without_machine(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_machine(item) for item in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
