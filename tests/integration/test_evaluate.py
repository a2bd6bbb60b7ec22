"""The evaluation from end to end on a tiny random pipeline, and the command's one-line errors."""

import json
import subprocess
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import build_clip_folder, build_pixart_pipeline
from huggingface_hub import ModelCard
from integration.pipelines import CASES
from ladders import COSTS, KINDS, build_ladder
from PIL import Image
from policies import build_step_policy
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ada.evaluation import (
    Embedding,
    Estimate,
    EvaluationError,
    Method,
    Request,
    Results,
    default_metrics,
    evaluate,
    evaluate_methods,
    full_method,
)
from ada.policy import AdaPolicy, BaseModel, LadderPolicy, StepPolicy
from ada.policy.card import address_card, write_card
from ada.policy.curve import Curve
from ada.policy.sight import describe
from ada.rollouts import FrozenPipeline, probe
from ada.schedules import Ladder
from blockdance import Reuse

ARGUMENTS = {"guidance_scale": 4.0, "max_sequence_length": 8, "use_resolution_binning": False, "clean_caption": False}
LADDER = Ladder(torch.tensor([[0] * 10, [0, 0, 0, 0, 0, 1, 0, 1, 0, 0]]), (Reuse(boundary=3),), (2,))
PROMPTS = ["a b", "c", "d e f", "g", "h"]


def pipeline_of(folder: Path, steps: int) -> FrozenPipeline:
    return FrozenPipeline(str(folder / "pipeline"), steps, ARGUMENTS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pipeline, scorer, policy and prompts, saved."""
    build_pixart_pipeline().save_pretrained(tmp_path / "pipeline")
    build_clip_folder(tmp_path / "scorer")
    build_step_policy(pipeline_of(tmp_path, 10)).save_pretrained(tmp_path / "policy")
    lines = [json.dumps({"prompt": prompt}) for prompt in PROMPTS]
    (tmp_path / "test.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


def request(folder: Path, **options: Any) -> Request:
    scorer = str(folder / "scorer")
    return Request(
        **({"prompts": PROMPTS, "indices": range(len(PROMPTS)), "metrics": default_metrics(scorer), "embed": Embedding(scorer)}
        | {"output": folder / "out", "batch_size": 2} | options)
    )  # fmt: skip


def test_evaluate(folder: Path) -> None:
    console = Console(record=True, width=180)
    extra = Method(name="Peer", family="Peers", group="peers", num_inference_steps=5, note="Somebody's method.")
    results = evaluate(
        pipeline_of(folder, 10),
        AdaPolicy.from_pretrained(folder / "policy"),
        request(
            folder, extra_methods=[extra], search_prompts=["x", "y"], search_indices=[0, 1], ladder=LADDER,
            compare_with="Fewer steps (5)", budgets=[0.8], sources={"policy": str(folder / "policy"), "scorer": "openai/some-clip"},
        ),
        console,
    )  # fmt: skip
    names = [method.name for method in results.methods]
    assert names[0] == "Full compute"
    assert names[-1] == "Peer"
    assert {"Ada λ=0.5", "Ada λ=2", "Ada λ=8", "Ada budget 80%", "BlockDance-2, block 3, order 0"} <= set(names)
    assert {"DeepCache, N=2", "cache-dit, SGLang, TaylorSeer", "FirstBlockCache 0.2"} <= set(names)
    # the settings around the main ones are left out, but for the row that all are compared with
    assert not {"BlockDance-4, block 3, order 0", "Fewer steps (8)", "Random, rate of λ=8"} & set(names)
    assert {"Static rung 1, 20%", "Shuffled Ada λ=2", "Threshold per image, 25%"} <= set(names)
    assert len(set(names)) == len(names)
    printed = console.export_text()
    assert all(name in printed for name in names)

    assert Results.load(folder / "out" / "results.json") == results
    text = (folder / "out" / "results.json").read_text(encoding="utf-8")
    assert str(folder) not in text
    assert str(folder) not in (folder / "out" / "index.html").read_text(encoding="utf-8")
    assert results.settings["policy"] == "policy"
    assert results.settings["scorer"] == "openai/some-clip"
    for picture in ("damage-compute.png", "damage-latency.png", "schedules.png", "grid.png"):
        with Image.open(folder / "out" / picture) as image:
            assert min(image.size) > 300
    assert "| Peer |" in (folder / "out" / "table.md").read_text(encoding="utf-8")

    summary = (folder / "out" / "summary.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in summary if line.startswith("| ")][2:]
    assert len(rows) == len({method.family for method in results.measured})

    reference, peer, defaults = results.methods[0], results.methods[-1], results.methods[names.index("TaylorSeer, defaults")]
    assert reference.per_prompt["perceptual_distance"] == [0.0] * len(PROMPTS)
    assert peer.per_prompt["compute_saved"] == pytest.approx([0.5] * len(PROMPTS))
    assert "attaches no hook" in str(defaults.reason)
    # the extra method is five plain steps, and so is the row that all are compared with
    assert peer.estimates["bounded_damage_difference"] == Estimate(0.0, 0.0, 0.0)
    ada = results.method("Ada λ=0.5")
    assert ada.actions is not None
    full, own = reference.per_prompt["macs_per_image"][0], ada.estimates["own_macs_per_image"].value
    assert ada.per_prompt["compute_saved"] == pytest.approx([saved_by(row, folder) - own / full for row in ada.actions])
    # timed at batch 1 alone, twice; of three λ the middle one
    assert ada.seconds_per_image == {}
    timed = results.method("Ada λ=2")
    assert {size: len(seconds) == 2 for size, seconds in timed.seconds_per_image.items()} == {"1": True}
    assert timed.estimates["speed_up_alone"].low is None  # two rounds
    assert "static_mixture" in peer.matches
    assert results.is_quick_look
    # what takes long for what it tells is left out, and the page says so
    assert not {"Random, rate of λ=2", "FasterCache", "FirstBlockCache 0.2, batch 1"} & set(names)
    assert "A quick look: 5 prompts" in results.warnings[0]
    assert "Random, rate of λ=2" in results.warnings[1]
    assert "FirstBlockCache 0.2, batch 1" in results.warnings[1]
    assert results.environment["cache-dit"] == version("cache-dit")
    events = EventAccumulator(str(folder / "out" / "tensorboard"))
    events.Reload()
    assert {f"evaluation/{name}" for name in ("damage-compute", "damage-latency", "schedules")} <= set(events.Tags()["images"])
    assert events.Scalars("compute_saved/Peer")[0].value == pytest.approx(0.5)

    # a policy's card takes its figures from such a folder
    policy = AdaPolicy.from_pretrained(folder / "policy")
    write_card(folder / "policy", policy, "someone/base")
    address_card(folder / "policy", policy, "someone/policy", "someone/base", folder / "out")
    card = ModelCard.load(folder / "policy" / "README.md")
    published = {result.metric_name: result.metric_value for result in card.data.eval_results}
    for metric in ("bounded_damage", "visibly_changed", "compute_saved", "speed_up_alone"):
        mean, _, spread = published[f"{metric.replace('_', ' ')}, Ada λ=2"].partition(" ± ")
        assert float(mean) == pytest.approx(timed.estimates[metric].value, abs=6e-5)
        assert (spread == "") == (timed.estimates[metric].low is None)
    assert (folder / "policy" / "damage-compute.png").read_bytes() == (folder / "out" / "damage-compute.png").read_bytes()
    assert summary[0] in card.text


def saved_by(actions: list[int], folder: Path) -> float:
    """Compute saved from the policy's own costs of the actions."""
    costs = StepPolicy.from_pretrained(folder / "policy").action_costs
    return 1 - float(costs[actions].mean())


def test_nothing_to_decide(folder: Path) -> None:
    """Of two steps the policy decides none: it computes the first two at least."""
    backbone = pipeline_of(folder, 2)
    with pytest.raises(EvaluationError, match="With 2 steps this policy decides none"):
        evaluate(backbone, AdaPolicy.from_pretrained(folder / "policy"), request(folder))


def test_an_unknown_row_to_compare_with_lists_the_rows(folder: Path) -> None:
    subject = pipeline_of(folder, 2)
    with pytest.raises(EvaluationError, match=r"No row is named 'Nothing'. There are: Full compute"):
        evaluate_methods(subject, [full_method(2)], request(folder, compare_with="Nothing"))


def test_rows_of_the_same_name_are_refused(folder: Path) -> None:
    """Else one would have the other's latency and pictures."""
    subject = pipeline_of(folder, 2)
    with pytest.raises(EvaluationError, match="Several rows are named 'Full compute'"):
        evaluate_methods(subject, [full_method(2), full_method(2)], request(folder))


def test_a_row_that_does_not_apply_is_none_to_compare_with(folder: Path) -> None:
    refused = Method(name="Peer", family="Peers", group="peers", num_inference_steps=10, reason="It has no blocks.")
    with pytest.raises(EvaluationError, match="'Peer' that all are compared with does not apply: It has no blocks"):
        evaluate_methods(pipeline_of(folder, 10), [full_method(10), refused], request(folder, compare_with="Peer", rounds=0))


def test_classes_are_evaluated_without_what_needs_a_text(folder: Path) -> None:
    """DiT's, by metrics the first of which reads prompts."""
    console = Console(record=True, width=180)
    frozen = FrozenPipeline(CASES["dit"].build(), 6)
    fewer = Method(name="Fewer", family="Fewer", group="plain", num_inference_steps=3)
    results = evaluate_methods(
        frozen, [full_method(6), fewer], request(folder, prompts=[2, 5], indices=[0, 1], rounds=0), console
    )
    assert results.prompts == ["2", "5"]
    assert "quality" not in results.columns
    assert min(results.methods[1].per_prompt["perceptual_distance"]) > 0
    assert "what needs a text is left out: quality." in console.export_text()
    assert (folder / "out" / "index.html").is_file()


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[2]
    sources = {"policy": "policy", "base-model": "pipeline", "scorer": "scorer", "prompts": "test.jsonl"}
    options = [word for option, name in sources.items() for word in (f"--{option}", str(folder / name))]
    words = [sys.executable, str(root / "evaluate.py"), *options, "--limit", "2", "--num-inference-steps=6"]
    words += [
        "--arguments",
        json.dumps(ARGUMENTS),
        "--quality-weights",
        "[2.0]",
        "--device",
        "cpu",
        "--search-prompts",
        "null",
        "--output",
        str(folder / "out"),
    ]
    return subprocess.run([*words, *arguments], capture_output=True, text=True, cwd=folder)


def save_gate(folder: Path) -> None:
    """A ladder policy with a measured curve, as `benchmarks/evidence.py --gates` saves one."""
    frozen = pipeline_of(folder, 6)
    width = describe(probe(frozen, KINDS, "a").state).shape[1]
    curve = Curve([0.5, 2.0, 8.0], [0.4, 0.2, 0.1], [0.3, 0.1, 0.0], [0.5, 0.2, 0.0])
    LadderPolicy(
        base_model=asdict(BaseModel.of(frozen.transformer)), ladder=build_ladder().to_dict(), reuse_costs=COSTS, sight_width=width,
        num_components=3, quality_weight_range=(0.5, 8.0), curve=curve.to_dict(),
    ).save_pretrained(folder / "gate")  # fmt: skip


def test_command(folder: Path) -> None:
    """With a further reward, named as in a training configuration, and another policy to compare with."""
    reward = {"agreement": {"class_path": "ada.rewards.ClipScore", "init_args": {"model": str(folder / "scorer")}}}
    save_gate(folder)
    rival = {"Gate": str(folder / "gate")}
    done = command(
        folder, "--rewards", json.dumps(reward), "--budgets", "[0.9]", "--rivals", json.dumps(rival), "--mean-budgets", "[0.8, 0.1]"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Ada λ=2" in done.stdout
    results = Results.load(folder / "out" / "results.json")
    assert results.prompts == ["a b", "d e f"]
    assert results.settings["num_inference_steps"] == 6
    assert results.columns["agreement"].heading == "Agreement"
    assert results.methods[1].per_prompt["agreement"] == pytest.approx(results.methods[1].per_prompt["quality"])
    gate = results.method("Gate mean 80%")
    assert gate.group == "peers"
    assert gate.actions is not None
    assert {tuple(row) for row in gate.actions} <= {tuple(row) for row in build_ladder().for_steps(6).actions.tolist()}
    assert gate.estimates["own_macs_per_image"].value > 0
    reasons = {method.name: method.reason for method in results.methods}
    assert "must lie between 0.600 and 0.900" in str(reasons["Gate mean 10%"])


def test_a_missing_policy_is_a_line_that_says_what_to_do(folder: Path) -> None:
    done = command(folder, "--policy", str(folder / "nothing-here"))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith("error: No policy in ")
    assert "python train.py" in error


def test_a_policy_of_another_model_is_a_line_that_says_what_differs(folder: Path) -> None:
    config = json.loads((folder / "policy" / "config.json").read_text(encoding="utf-8"))
    config["base_model"]["num_blocks"] = 28
    (folder / "policy" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    done = command(folder)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "num_blocks: 28 here, 4 there" in done.stderr.strip().splitlines()[-1]


def test_a_missing_scorer_is_a_line_that_names_it(folder: Path) -> None:
    done = command(folder, "--scorer", str(folder / "no-scorer"))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert f"No scorer in {folder / 'no-scorer'}" in done.stderr.strip().splitlines()[-1]
