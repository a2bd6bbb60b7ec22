"""Saving over what lies there, and publishing: a policy takes its own card and figures along, and no other's."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

from ada.__main__ import main
from ada.policy import AdaPolicy, IncompatiblePolicyError, PolicyNotFoundError
from ada.policy.hub import hub_id
from ada.training.publish import describe_training

SHIPPED = Path(__file__).parents[4] / "checkpoints" / "ada-emoji"
FIGURES = {"README.md", "outcome.json", "training.json", "outcome.png", "decisions.png"}


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where what is published goes, in place of the Hub."""
    place = tmp_path / "published"

    def push(stage: Path, *_: object, **__: object) -> str:
        shutil.copytree(stage, place, dirs_exist_ok=True)
        return "address"

    monkeypatch.setattr("ada.policy.publishing.push_folder", push)
    monkeypatch.setattr("ada.policy.publishing.make_repository", lambda *_, **__: None)
    monkeypatch.setattr("ada.policy.publishing.has_card", lambda *_, **__: False)
    return place


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the shipped policy, card and figures included."""
    return Path(shutil.copytree(SHIPPED, tmp_path / "policy"))


def changed(folder: Path) -> AdaPolicy:
    """The policy in a folder, with other weights."""
    policy = AdaPolicy.from_pretrained(folder)
    with torch.no_grad():
        next(policy.parameters()).add_(0.1)
    return policy


def test_figures_of_other_weights_are_put_aside_and_not_published(folder: Path, published: Path) -> None:
    shipped = AdaPolicy.from_pretrained(SHIPPED)
    changed(folder).save_pretrained(folder)
    assert {file.name for file in folder.iterdir()} == {"config.json", "model.safetensors", "earlier"}
    kept = folder / "earlier" / shipped.digest()
    assert {file.name: file.read_bytes() for file in kept.iterdir()} == {
        name: (SHIPPED / name).read_bytes() for name in FIGURES
    }, "nothing is lost"
    AdaPolicy.from_pretrained(folder).push_to_hub("someone/policy")
    assert {file.name for file in published.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    assert "No figures were measured" in (published / "README.md").read_text()


def test_figures_stay_beside_their_own_weights(folder: Path, published: Path) -> None:
    AdaPolicy.from_pretrained(folder).with_options(compute=0.8).save_pretrained(folder)
    assert {file.name for file in folder.iterdir()} == FIGURES | {"config.json", "model.safetensors"}
    AdaPolicy.from_pretrained(folder).push_to_hub("someone/policy")
    assert {file.name for file in published.iterdir()} >= FIGURES


def test_what_is_no_policy_leaves_its_card_to_itself(tmp_path: Path) -> None:
    """A folder of another model, and one that is empty but for what its user keeps there."""
    for name, config in (("other", '{"model_type": "clip"}'), ("own", None)):
        place = tmp_path / name
        place.mkdir()
        (place / "README.md").write_text("Mine.")
        if config:
            (place / "config.json").write_text(config)
        AdaPolicy.from_pretrained(SHIPPED).save_pretrained(place)
    assert (tmp_path / "other" / "earlier" / "unknown" / "README.md").read_text() == "Mine."
    assert (tmp_path / "own" / "README.md").read_text() == "Mine."


def test_what_the_message_says_publishes_a_policy_that_was_changed(folder: Path, tmp_path: Path, published: Path) -> None:
    """Other weights than those in the folder that it came from, or no such folder any more."""
    policy = changed(folder)
    said = r"`policy\.save_pretrained\(folder\)`, then `AdaPolicy\.from_pretrained\(folder\)\.push_to_hub"
    with pytest.raises(IncompatiblePolicyError, match=rf"are not this policy's.*{said}"):
        policy.push_to_hub("someone/policy")
    shutil.rmtree(folder)
    with pytest.raises(PolicyNotFoundError, match=rf"policy, which this policy was loaded from.*no longer there.*{said}"):
        policy.push_to_hub("someone/policy")
    assert not published.exists()
    policy.save_pretrained(tmp_path / "mine")
    assert AdaPolicy.from_pretrained(tmp_path / "mine").push_to_hub("someone/policy") == "address"
    assert AdaPolicy.from_pretrained(published).digest() == policy.digest()


def test_paths_of_the_clone_are_no_hub_ids_elsewhere(
    folder: Path, tmp_path: Path, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shipped policy, trained on `checkpoints/emoji-prompts`, published from a folder that has no such path."""
    monkeypatch.chdir(tmp_path)
    assert hub_id("checkpoints/emoji-prompts") is None
    policy = AdaPolicy.from_pretrained(folder)
    policy.push_to_hub("someone/policy")
    data = ModelCard.load(published / "README.md").data
    assert data.get("datasets") is None
    assert {result.dataset_type for result in data.eval_results} == {"captions"}
    with pytest.raises(ValueError, match=r"`base_model` must be the Hub id .*got 'checkpoints/emoji-dit'"):
        policy.push_to_hub("someone/policy", base_model="checkpoints/emoji-dit")


@pytest.mark.parametrize("is_local", [True, False])
def test_training_notes_whether_its_captions_are_on_the_hub(
    folder: Path, tmp_path: Path, published: Path, monkeypatch: pytest.MonkeyPatch, is_local: bool
) -> None:
    """`someone/captions` is a folder where it is trained, and no more where it is published; or it never was one."""
    monkeypatch.chdir(tmp_path)
    if is_local:
        (tmp_path / "someone" / "captions").mkdir(parents=True)
    identity = {"data": {"init_args": {"source": "someone/captions"}}, "seed_everything": 0}
    (folder / "training.json").write_text(json.dumps(describe_training(identity, 1.0, torch.device("cpu"))))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    AdaPolicy.from_pretrained(folder).push_to_hub("someone/policy")
    assert ModelCard.load(published / "README.md").data.get("datasets") == (None if is_local else ["someone/captions"])


def test_a_folder_has_no_revisions(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for source in (folder, str(folder)):
        with pytest.raises(PolicyNotFoundError, match=r"is a folder, which has no revisions; got 'v9'\. Leave `revision` out"):
            AdaPolicy.from_pretrained(source, revision="v9")
    assert main(["show", "--policy", str(folder), "--revision", "v9"]) == 1
    assert "which has no revisions" in capsys.readouterr().err


def test_the_hubs_own_settings_reach_the_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def download(name: str, **given: Any) -> str:
        asked.update(given)
        return str(SHIPPED)

    monkeypatch.setattr("ada.policy.hub.snapshot_download", download)
    settings = {"cache_dir": tmp_path, "local_files_only": True, "token": "secret", "revision": "v1"}
    AdaPolicy.from_pretrained("someone/policy", **settings)
    assert asked.items() >= settings.items()
