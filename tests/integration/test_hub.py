"""Policies travel over HTTP: the real `huggingface_hub` client, in processes of its own, against a Hub on loopback."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hub_client
import pytest
import torch
import yaml
from conftest import build_pixart, build_pixart_pipeline
from hub_client import Client, client
from hub_connection import TOKEN
from hub_server import LoopbackHub, serve
from huggingface_hub import ModelCard
from ladders import MORE_CASES, build_frozen, build_ladder, build_policy, build_reward
from safetensors.torch import load, load_file

from ada.policy import BaseModel, StepPolicy
from ada.policy.card import write_card
from ada.rollouts import Collector

CURVE = {"quality_weight": [0.5, 1.0, 2.0], "saved": [0.25, 0.2, 0.1], "damage": [0.2, 0.1, 0.05], "changed": [0.3, 0.1, 0.0]}
OUTCOME = {
    "num_cases": 100,
    "levels": [
        {"saved": 0.2, "policy": 0.0527, "mixture": 0.0821, "oracle": 0.0126, "advantage": [0.0294, 0.0102, 0.0556],
         "changed_policy": 0.0, "changed_mixture": 0.02, "gap_closed": 0.42, "distinct": 9, "agreement": 0.6},
    ],
}  # fmt: skip
TRAINING = {
    "seed": 3, "minutes": 12.5, "hardware": "two cores",
    "settings": {"data": {"init_args": {"source": "someone/captions", "train_limit": 320}}},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy folder as training exports it."""
    collector = Collector(build_frozen(), build_reward(), build_ladder(), None, batch_size=4)
    collector.fill(MORE_CASES)
    sights = collector.sights(MORE_CASES)
    policy = build_policy(collector, sights, quality_weight=1.0, curve=CURVE)
    path = tmp_path_factory.mktemp("run") / "policy"
    policy.save_pretrained(path)
    (path / "outcome.json").write_text(json.dumps(OUTCOME))
    (path / "training.json").write_text(json.dumps(TRAINING))
    write_card(path, policy, "checkpoints/emoji-dit")
    return path


@pytest.fixture(scope="module")
def hub() -> Iterator[LoopbackHub]:
    with serve(regular_limit=2 * 2**20, part_size=2**20) as server:
        yield server


@pytest.fixture(scope="module")
def author(hub: LoopbackHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with client(tmp_path_factory.mktemp("author"), hub.url, TOKEN) as process:
        yield process


@pytest.fixture(scope="module")
def user(hub: LoopbackHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Another process with another cache, not logged in."""
    with client(tmp_path_factory.mktemp("user"), hub.url) as process:
        yield process


@pytest.fixture(scope="module")
def commits(author: Client, folder: Path) -> list[str]:
    """Two commits of one policy: with a budget, and with another λ."""
    return [
        author(hub_client.push, folder, "someone/policy", {"compute": 0.83}, base_model="someone/base"),
        author(hub_client.push, folder, "someone/policy", {"quality_weight": 2.0}, base_model="someone/base"),
    ]


def build_step(**sizes: int) -> StepPolicy:
    """A policy of the paper's form, whose size can be chosen."""
    base = asdict(BaseModel.of(build_pixart()))
    return StepPolicy(base_model=base, feature_width=16, kinds=[{"boundary": 2}], action_costs=[1.0, 0.4], **sizes)


# --- the way there and back ---


def test_a_fresh_process_decides_alike_to_the_bit(commits: list[str], author: Client, user: Client, folder: Path) -> None:
    """By commit and by tag, with the options that were set; and with a wish in place of them."""
    author(hub_client.tag, "someone/policy", "v1", commits[0])
    budget, config = build_ladder().actions[[3] * 8], json.loads((folder / "config.json").read_text())
    assert torch.equal(user(hub_client.actions_of, "someone/policy@v1"), budget)
    assert torch.equal(user(hub_client.actions_of, f"someone/policy@{commits[0]}"), budget)
    local = author(hub_client.actions_of, str(folder), mean_compute=0.8)
    assert len(local.unique(dim=0)) > 1, "images must differ, or equality would say little"
    assert torch.equal(user(hub_client.actions_of, "someone/policy", mean_compute=0.8), local)

    loaded, weights = user(hub_client.load, "someone/policy", commits[1])
    assert (loaded["quality_weight"], loaded["compute"]) == (2.0, None)
    assert user(hub_client.load, "someone/policy@v1")[0]["compute"] == 0.83
    assert loaded["base_model"] == config["base_model"] | {"name": "someone/base"}
    kept = load_file(folder / "model.safetensors")
    assert weights.keys() == kept.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in kept.items())


def test_the_folder_stays_and_the_card_is_the_repositorys(commits: list[str], hub: LoopbackHub, folder: Path) -> None:
    assert "checkpoints/emoji-dit" in (folder / "README.md").read_text()
    assert json.loads((folder / "config.json").read_text())["compute"] is None
    files = hub.repositories["someone/policy"].commits[commits[1]]
    assert set(files) == {".gitattributes", "config.json", "model.safetensors", "README.md", "outcome.json", "training.json"}
    assert files["model.safetensors"][1] is not None, "weights go through LFS"
    card = ModelCard(files["README.md"][0].decode())
    data = card.data.to_dict()
    assert (data["base_model"], data["base_model_relation"]) == ("someone/base", "adapter")
    assert (data["library_name"], data["pipeline_tag"], data["license"]) == ("blockdance-ada", "text-to-image", "apache-2.0")
    assert data["datasets"] == ["someone/captions"]
    assert 'apply_blockdance(pipe, "someone/policy", mean_compute=0.8)' in card.text
    assert 'from_pretrained("someone/base")' in card.text
    for words in (
        "Seed 3; 12.5 minutes on two cores",
        "train_limit: 320",
        "## Limits",
        "@inproceedings",
        "| 20% | 0.0527 | 0.0821",
    ):
        assert words in card.text
    advantage = next(one for one in card.data.eval_results if one.metric_type.startswith("advantage"))
    assert (advantage.metric_value, advantage.dataset_type) == ("0.0294 ± 0.0262", "someone/captions")


def test_publishing_again_what_is_there_makes_no_commit(
    commits: list[str], hub: LoopbackHub, author: Client, folder: Path
) -> None:
    before = len(hub.repositories["someone/policy"].commits)
    again = author(hub_client.push, folder, "someone/policy", {"quality_weight": 2.0}, base_model="someone/base")
    assert again == commits[1]
    assert len(hub.repositories["someone/policy"].commits) == before


def test_push_show_pull(hub: LoopbackHub, author: Client, user: Client, folder: Path, tmp_path: Path) -> None:
    """A hand-edited card survives, on a branch too; what is pulled is pushed again as it was."""
    copy = tmp_path / "policy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    card = (
        (copy / "README.md")
        .read_text()
        .replace("license: apache-2.0", "license: mit")
        .replace("## Limits", "## Limits\n\n- Mine.")
    )
    (copy / "README.md").write_text(card)
    push = ("push", "--policy", str(copy), "--repo_id", "someone/cli", "--base_model", "someone/base", "--revision", "draft")
    status, printed = author(hub_client.command, *push)
    assert status == 0, printed
    commit = hub.repositories["someone/cli"].references["draft"]
    assert printed == f"Published: {hub.url}/someone/cli/commit/{commit}\n"
    assert "config.json" not in hub.repositories["someone/cli"].commits[hub.repositories["someone/cli"].references["main"]]

    status, printed = user(hub_client.command, "show", "--policy", "someone/cli@draft")
    assert status == 0
    assert "PixArtTransformer2DModel with 4 blocks, such as someone/base" in printed
    pulled = tmp_path / "pulled"
    status, printed = user(hub_client.command, "pull", "--policy", "someone/cli@draft", "--folder", str(pulled))
    assert (status, printed) == (0, f"Wrote someone/cli@draft to {pulled}.\n"), "and nothing beside it"
    assert {file.name for file in pulled.iterdir()} == {file.name for file in folder.iterdir()}
    text = (pulled / "README.md").read_text()
    assert "- Mine." in text
    assert "license: mit" in text

    assert author(hub_client.command, "push", "--policy", str(pulled), "--repo_id", "other/name")[0] == 0
    files = hub.repositories["other/name"].commits[hub.repositories["other/name"].references["main"]]
    assert '"other/name"' in files["README.md"][0].decode()
    assert json.loads(files["config.json"][0])["base_model"]["name"] == "someone/base"


def test_no_stub_replaces_a_good_card(hub: LoopbackHub, author: Client, folder: Path, tmp_path: Path) -> None:
    """Of a folder without a card, the repository's card stays; a new repository gets one that says that nothing was measured."""
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((folder / name).read_bytes())
    first = author(hub_client.push, folder, "someone/carded", {}, base_model="someone/base")
    second = author(hub_client.push, bare, "someone/carded", {"quality_weight": 4.0})
    files = hub.repositories["someone/carded"].commits
    assert b"someone/base" in files[first]["README.md"][0]
    assert files[second]["README.md"] == files[first]["README.md"]
    assert files[second]["config.json"] != files[first]["config.json"]
    commit = author(hub_client.push, bare, "someone/bare", {})
    assert "No figures were measured" in hub.repositories["someone/bare"].commits[commit]["README.md"][0].decode()


def test_weights_above_the_regular_limit_go_in_parts(hub: LoopbackHub, author: Client, user: Client, tmp_path: Path) -> None:
    """3 MB of weights, and a picture above the limit, beside a config that goes into the commit itself."""
    policy = build_step(hidden_size=128, num_layers=4)
    policy.save_pretrained(tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size
    assert size > hub.regular_limit
    (tmp_path / "decisions.png").write_bytes(b"\x89PNG" + os.urandom(hub.regular_limit))
    before = hub.count("PUT /lfs/")
    commit = author(hub_client.push, tmp_path, "someone/large", {})
    assert hub.count("PUT /lfs/") - before == -(-size // hub.part_size) + 3
    files = hub.repositories["someone/large"].commits[commit]
    assert files["model.safetensors"][0] == (tmp_path / "model.safetensors").read_bytes()
    assert files["decisions.png"][1] is not None
    _, weights = user(hub_client.load, "someone/large")
    assert torch.equal(weights["head.1.weight"], policy.state_dict()["head.1.weight"])


def write_training(folder: Path) -> Path:
    """A tiny run over the default configuration, as a user would write it, that publishes its policy."""
    build_pixart_pipeline().save_pretrained(folder / "pipeline")
    build_ladder().save(folder / "ladder.json")
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text("\n".join(json.dumps({"prompt": f"{letter} {split}"}) for letter in "abcd"))
    arguments = {"max_sequence_length": 12, "use_resolution_binning": False}
    frozen = {"model": str(folder / "pipeline"), "num_inference_steps": 8, "arguments": arguments}
    push = {"class_path": "ada.training.PushPolicy", "init_args": {"repo_id": "someone/trained", "base_model": "someone/base"}}
    config = {
        "trainer": {"accelerator": "cpu", "default_root_dir": str(folder / "run"), "max_epochs": 5, "logger": False, "callbacks": [push]},
        "data": {"init_args": {
            "pipeline": {"class_path": "ada.rollouts.FrozenPipeline", "init_args": frozen},
            "reward": {"class_path": "ada.rewards.WeightedReward", "init_args": {
                "rewards": {"psnr": {"class_path": "ada.rewards.PSNR"}}, "weights": {"psnr": 1.0}}},
            "ladder": str(folder / "ladder.json"), "source": str(folder), "train_split": "train", "train_limit": None,
            "validation_limit": None, "table": str(folder / "tables"),
        }},
    }  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def test_training_publishes_its_policy(hub: LoopbackHub, author: Client, user: Client, tmp_path: Path) -> None:
    """What is on the Hub is what was exported, without this machine's folders; who is not logged in is told before training begins."""
    config = str(write_training(tmp_path))
    expect(
        user(hub_client.failure, hub_client.run_training, "--config", config), "HubError", "someone/trained", "hf auth login"
    )
    assert not list((tmp_path / "tables").rglob("*.safetensors")), "before the first rollout"
    author(hub_client.run_training, "--config", config)
    repository, exported = hub.repositories["someone/trained"], tmp_path / "run" / "policy"
    files = repository.commits[repository.references["main"]]
    assert {file.name for file in exported.iterdir()} == set(files) - {".gitattributes"}
    assert files["model.safetensors"][0] == (exported / "model.safetensors").read_bytes()
    assert json.loads(files["training.json"][0])["seed"] == 0
    assert all(str(tmp_path).encode() not in content for content, _ in files.values())
    assert user(hub_client.load, "someone/trained")[0]["base_model"]["name"] == "someone/base"


def test_evaluate_takes_a_hub_id(commits: list[str], hub: LoopbackHub, tmp_path: Path) -> None:
    """Loaded, and found to be for another model than the embedded one: the last line says what differs."""
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", "HF_TOKEN": ""}
    finished = subprocess.run(
        [sys.executable, "evaluate.py", "--policy", f"someone/policy@{commits[0]}", "--limit", "1", "--device", "cpu"],
        capture_output=True, text=True, timeout=300, env=environment, check=False,
    )  # fmt: skip
    assert finished.returncode == 2
    assert "error: This policy was trained on another architecture" in finished.stderr
    assert "num_blocks: 4 here, 16 there" in finished.stderr
    assert hub.count(f"HEAD /someone/policy/resolve/{commits[0]}/config.json") > 0


# --- what goes wrong ---


def expect(answer: tuple[str, str], kind: str, *words: str) -> None:
    assert answer[0] == kind, answer
    for word in words:
        assert word in answer[1], answer
    assert "\n" not in answer[1]


def test_what_is_not_there_is_named(commits: list[str], hub: LoopbackHub, author: Client, user: Client) -> None:
    def failure(source: str, process: Client = user, **options: Any) -> tuple[str, str]:
        return process(hub_client.failure, hub_client.load, source, **options)

    expect(
        failure("someone/nothing"),
        "PolicyNotFoundError",
        "neither a folder nor a Hub repository someone/nothing",
        "hf auth login",
    )
    expect(failure("someone/nothing", author), "PolicyNotFoundError", "neither a folder nor")
    expect(failure("someone/policy@v9"), "PolicyNotFoundError", "no revision 'v9'")
    expect(failure("someone/policy", revision="0" * 40), "PolicyNotFoundError", "no revision '000")
    expect(failure("someone/policy@v1", revision="v2"), "PolicyNotFoundError", "different revisions")
    expect(failure("a/b/c"), "PolicyNotFoundError", "neither a folder nor a Hub id")
    expect(user(hub_client.failure, hub_client.actions_of, "someone/nothing"), "PolicyNotFoundError", "someone/nothing")
    status, printed = user(hub_client.command, "show", "--policy", "someone/nothing")
    assert status == 1
    assert printed.startswith("error: There is neither")


def test_a_repository_that_is_no_policy_is_named(hub: LoopbackHub, commits: list[str], user: Client) -> None:
    """Nothing at all, another model, and one whose weights are pickled: those are not even fetched."""
    repository = hub.repositories["someone/policy"]
    files = repository.commits[commits[1]]
    others = {
        "nothing": ({"notes.txt": (b"hello", None)}, "it has no config.json"),
        "clip": ({"config.json": (b'{"model_type": "clip"}', None)}, "its config.json does not say so"),
        "pickle": ({"config.json": files["config.json"], "pytorch_model.bin": (b"cos\nsystem", None)}, "no model.safetensors"),
    }
    for number, (name, (content, message)) in enumerate(others.items()):
        repository.commits[f"{number}" * 40] = content
        answer = user(hub_client.failure, hub_client.load, "someone/policy", f"{number}" * 40)
        expect(answer, "IncompatiblePolicyError", "someone/policy", message)
        assert hub.count(f"resolve/{str(number) * 40}/pytorch_model.bin") == 0, name


def test_private_and_gated_repositories_are_named(hub: LoopbackHub, author: Client, user: Client, folder: Path) -> None:
    """Who is not logged in, or was not let in, is told what to do; their owner loads them."""
    for name, said in (("private", "or it is private: then `hf auth login`"), ("gated", "is gated: ask for access")):
        author(hub_client.push, folder, f"someone/{name}", {}, private=name == "private")
        hub.repositories[f"someone/{name}"].gated = name == "gated"
        expect(user(hub_client.failure, hub_client.load, f"someone/{name}"), "PolicyNotFoundError", f"someone/{name}", said)
        assert author(hub_client.load, f"someone/{name}")[0]["quality_weight"] == 1.0
    assert hub.repositories["someone/private"].private


def test_a_token_may_be_given_instead_of_a_login(hub: LoopbackHub, user: Client, folder: Path) -> None:
    """Also of a private repository whose policy is published elsewhere, with the card and figures that it has there."""
    expect(user(hub_client.failure, hub_client.push, folder, "someone/token", {}), "HubError", "hf auth login")
    user(hub_client.push, folder, "someone/token", {}, private=True, token=TOKEN)
    assert user(hub_client.load, "someone/token", token=TOKEN)[0]["quality_weight"] == 1.0
    user(hub_client.push, "someone/token", "someone/copy", {}, token=TOKEN)
    copy = hub.repositories["someone/copy"]
    assert "outcome.json" in copy.commits[copy.references["main"]]


def test_a_card_that_the_hub_cannot_read_is_not_published(
    hub: LoopbackHub, author: Client, folder: Path, tmp_path: Path
) -> None:
    """Metadata that are no YAML, found here; and metadata that the Hub's own validation refuses."""
    shutil.copytree(folder, tmp_path / "policy")
    card, good = tmp_path / "policy" / "README.md", (folder / "README.md").read_text()
    unreadable = "README.md, between its first two lines `---`, cannot be read"
    for line, message in (("license: [mit", unreadable), ("license: 3", "Invalid metadata")):
        card.write_text(good.replace("license: apache-2.0", line))
        status, printed = author(hub_client.command, "push", "--policy", str(card.parent), "--repo_id", "someone/unread")
        assert status == 1
        assert printed.startswith("error: ")
        assert message in printed
        assert "othing was published" in printed
        repository = hub.repositories.get("someone/unread")
        assert repository is None or {".gitattributes"} == set(repository.commits[repository.references["main"]])


def test_a_download_that_breaks_off(hub: LoopbackHub, author: Client, user: Client, tmp_path: Path) -> None:
    """For good: one named error, and the next try succeeds. Once: the client goes on from where it broke."""
    build_step(hidden_size=16).save_pretrained(tmp_path)
    commit = author(hub_client.push, tmp_path, "someone/broken", {})
    content, oid = hub.repositories["someone/broken"].commits[commit]["model.safetensors"]
    hub.cut[f"GET /lfs/{oid}"] = (100, 0)
    answer = user(hub_client.failure, hub_client.load, "someone/broken")
    expect(answer, "HubError", "The download of the policy someone/broken broke off", "Try again")
    hub.cut[f"GET /lfs/{oid}"] = (1, 1000)
    before = hub.count(f"GET /lfs/{oid}")
    _, weights = user(hub_client.load, "someone/broken")
    assert torch.equal(weights["head.1.weight"], load(content)["head.1.weight"])
    assert hub.count(f"GET /lfs/{oid}") == before + 2


def test_a_hub_that_fails(commits: list[str], hub: LoopbackHub, author: Client, user: Client, folder: Path) -> None:
    hub.faults["GET /api/models/someone/unseen/"] = (1, 503)
    expect(user(hub_client.failure, hub_client.load, "someone/unseen"), "HubError", "cannot be reached", "503")
    user(hub_client.load, "someone/policy")
    hub.faults["GET /api/models/someone/policy/revision"] = (1, 500)
    assert user(hub_client.load, "someone/policy")[0]["quality_weight"] > 0, "what is in the cache is used"

    def publishing(process: Client, name: str) -> tuple[str, str]:
        return process(hub_client.failure, hub_client.push, folder, name, {})

    expect(publishing(user, "someone/mine"), "HubError", "refused to publish someone/mine", "hf auth login")
    expect(publishing(author, "no spaces/please"), "HubError", "no Hub id of the form `user/name`")
    for status, words in ((403, "right to write"), (409, "try again"), (500, "Try again later")):
        hub.faults["POST /api/models/someone/policy/commit"] = (1, status)
        expect(publishing(author, "someone/policy"), "HubError", "refused to publish someone/policy", words)
    assert "someone/mine" not in hub.repositories


def test_no_network(commits: list[str], folder: Path, tmp_path: Path) -> None:
    """A closed port: both ways are named, and the folder that was to be published stays as it was."""
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}"  # where nobody listens, nor can as long as it is bound
        with client(tmp_path, nowhere, TOKEN) as process:
            answer = process(hub_client.failure, hub_client.load, "someone/policy")
            expect(answer, "HubError", "not in the local cache, and the Hub cannot be reached", "Check the network")
            answer = process(hub_client.failure, hub_client.push, folder, "someone/policy", {})
            expect(answer, "HubError", "someone/policy could not be published")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
