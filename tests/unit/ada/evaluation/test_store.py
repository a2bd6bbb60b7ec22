"""Whose measurements are whose: what a store depends on, and what its rows do."""

import io
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from conftest import build_clip_folder, build_pixart_pipeline
from policies import build_step_policy
from torch import nn

from ada.evaluation.compare import open_store
from ada.evaluation.measure import Embedding, Metric, default_metrics
from ada.evaluation.measure.metrics import DISTANCE, Column
from ada.evaluation.measure.store import Store, describe_environment, key_of
from ada.evaluation.methods import Cases, Method, control_methods, full_method, policy_digest
from ada.evaluation.request import Request
from ada.policy import StepPolicy
from ada.rewards import SSIM, ClipScore, Relative, load_features
from ada.rollouts import FrozenPipeline
from ada.rollouts.fingerprints import networks_digest
from blockdance import PolicyState, Reuse, ReuseSchedule, full_compute

STEPS = 6


@pytest.fixture
def backbone(tmp_path: Path) -> FrozenPipeline:
    build_pixart_pipeline().save_pretrained(tmp_path / "pipeline")
    return FrozenPipeline(
        str(tmp_path / "pipeline"), STEPS, {"max_sequence_length": 8, "use_resolution_binning": False, "clean_caption": False}
    )


@pytest.fixture
def policy(backbone: FrozenPipeline) -> StepPolicy:
    return build_step_policy(backbone)


def test_other_settings_take_nothing_from_an_earlier_run(tmp_path: Path) -> None:
    method = full_method(STEPS)
    dark, light = (Store(tmp_path, {"seed": seed}) for seed in range(2))
    dark.write("decisions", [1])
    dark.add_images(method, [3], torch.zeros(1, 3, 2, 2))
    light.add_images(method, [3], torch.ones(1, 3, 2, 2))
    again = Store(tmp_path, {"seed": 0})
    assert again.read("decisions") == [1]
    assert again.image(method, 3).max() == 0
    assert light.read("decisions") is None


@pytest.mark.parametrize(("kept", "writer"), [("batch", "numpy.save"), ("images", "PIL.Image.Image.save")])
def test_what_is_killed_while_it_is_written_leaves_what_was_there(tmp_path: Path, kept: str, writer: str) -> None:
    """Half of a file reaches the disk: the first time nothing is there afterwards, the second time what the whole write left."""

    def killed(*given: Any) -> None:
        file = next(each for each in given if isinstance(each, (Path, io.IOBase)))
        file.write_bytes(b"half") if isinstance(file, Path) else file.write(b"half")
        raise KeyboardInterrupt

    def keep(value: float) -> None:
        if kept == "batch":
            store.add_batch(method, slice(0, 1), {}, torch.full((1, 2), value))
        else:
            store.add_images(method, [0], torch.full((1, 3, 2, 2), value))

    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    method, store = full_method(STEPS), Store(tmp_path, {})
    for _ in range(2):
        before = files()
        with patch(writer, killed), pytest.raises(KeyboardInterrupt):
            keep(1.0)
        assert files() == before
        keep(0.0)


def test_another_policy_is_another_row(policy: StepPolicy) -> None:
    """Also to its control, which does as its row did; what is stored of the one is never taken for the other's."""
    others = [policy, policy.with_options(quality_weight=3.0)]
    rows = [Method(name="ada", family="ada", group="ada", num_inference_steps=STEPS, plan=each) for each in others]
    controls = [
        control_methods(row, each, lambda images: torch.zeros(0), 0, Cases(["a", "b"], [0, 1], 2), main=True)
        for row, each in zip(rows, others, strict=True)
    ]
    for one, two in zip(*([row, *control] for row, control in zip(rows, controls, strict=True)), strict=True):
        assert one.name == two.name
        assert key_of(one) != key_of(two)


def test_another_decider_of_ones_own_is_another_row() -> None:
    """Told apart by what it holds: numbers, networks, and itself."""

    class Decider(nn.Module):
        kinds = (Reuse(boundary=1),)

        def __init__(self, threshold: float, weight: float = 0.0) -> None:
            super().__init__()
            self.threshold, self.weight = threshold, nn.Parameter(torch.tensor([weight]))
            self.notes, self.holders = {"a"}, [self]

        def decision_steps(self, num_steps: int) -> tuple[int, ...]:
            return (2,)

        def decide(self, state: PolicyState) -> ReuseSchedule:
            return full_compute(state.num_images, state.num_steps)

        def check(self, transformer: nn.Module) -> None: ...

    rows = [
        Method(name="Mine", family="Mine", group="peers", num_inference_steps=STEPS, plan=plan)
        for plan in (Decider(0.1), Decider(0.1), Decider(0.2), Decider(0.1, weight=1.0))
    ]
    keys = [key_of(row) for row in rows]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


def test_a_policy_of_the_same_weights_and_another_configuration_is_another_one(policy: StepPolicy, tmp_path: Path) -> None:
    policy.save_pretrained(tmp_path)
    assert policy_digest(StepPolicy.from_pretrained(tmp_path)) == policy_digest(policy)
    other = policy.with_options(quality_weight=3.0)
    assert other.digest() == policy.digest()
    assert policy_digest(other) != policy_digest(policy)


def retrain(network: nn.Module) -> None:
    """Changes the weights a little, where they are."""
    with torch.no_grad():
        next(network.parameters()).add_(1e-3)


def test_a_scorer_that_was_retrained_in_its_place_makes_another_store(backbone: FrozenPipeline, tmp_path: Path) -> None:
    """Whether a reward holds it, one inside another, or the features of the Fréchet distance."""
    scorer = Relative(ClipScore(str(build_clip_folder(tmp_path / "scorer"))))
    metrics = {DISTANCE: Metric(SSIM(), Column("Distance")), "relative": Metric(scorer, Column("Quality lost"))}
    embed = Embedding(str(build_clip_folder(tmp_path / "features")))
    request = Request(prompts=["a"], indices=[0], metrics=metrics, embed=embed, output=tmp_path)
    found = [open_store(backbone, request, full_method(STEPS))[0].parts for _ in range(2)]
    for name in ("scorer", "features"):
        retrain(load_features(str(tmp_path / name))._model)
        found.append(open_store(backbone, request, full_method(STEPS))[0].parts)
    found.append(open_store(backbone, replace(request, embed=lambda images: images.flatten(1)), full_method(STEPS))[0].parts)
    assert found[0] == found[1]
    assert len(set(found)) == 4
    assert networks_digest(embed.__call__) == networks_digest(embed)


def test_another_version_or_decoder_takes_nothing_that_is_there(
    backbone: FrozenPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request(prompts=["a"], indices=[0], metrics={DISTANCE: Metric(SSIM(), Column("Distance"))}, output=tmp_path,
                      embed=lambda images: images.flatten(1))  # fmt: skip
    found = [open_store(backbone, request, full_method(STEPS))[0].parts]
    retrain(backbone.pipeline.vae.decoder)
    found.append(open_store(backbone, request, full_method(STEPS))[0].parts)
    environment = describe_environment(torch.device("cpu"))
    assert environment["blockdance-ada"] == version("blockdance-ada")
    monkeypatch.setattr(
        "ada.evaluation.measure.describe_environment", lambda device: environment | {"blockdance-ada": "another"}
    )
    found.append(open_store(backbone, request, full_method(STEPS))[0].parts)
    assert len(set(found)) == 3


def test_what_all_rows_depend_on_makes_another_store_and_nothing_else(
    backbone: FrozenPipeline, policy: StepPolicy, tmp_path: Path
) -> None:
    """More seeds, rivals, budgets and another policy find what is measured already; other prompts, noise, metrics or steps do not."""
    scorer = str(build_clip_folder(tmp_path / "scorer"))
    first = Request(
        prompts=["a", "b"], indices=[0, 1], metrics=default_metrics(scorer), embed=Embedding(scorer), output=tmp_path / "out"
    )
    other_metrics = {**first.metrics, "twice": Metric(SSIM(), Column("SSIM again"))}
    store, recorded = open_store(backbone, first, full_method(STEPS))
    for same in (
        replace(first, seeds=3),
        replace(first, visible_damage=0.02),
        replace(first, rivals={"gate": policy}, budgets=[0.5], sources={"policy": "another"}),
    ):
        assert open_store(backbone, same, full_method(STEPS))[0].parts == store.parts
    others = [
        replace(first, prompts=["a", "c"]), replace(first, indices=[0, 2]), replace(first, seed=1), replace(first, batch_size=4),
        replace(first, metrics=other_metrics), replace(first, search_prompts=["d"], search_indices=[3]),
    ]  # fmt: skip
    found = [open_store(backbone, other, full_method(STEPS))[0].parts for other in others]
    fewer = FrozenPipeline(backbone.model, STEPS - 1, backbone.arguments)
    found += [open_store(fewer, first, full_method(STEPS - 1))[0].parts]
    found += [open_store(backbone, first, full_method(STEPS - 1))[0].parts]  # another reference, beside which all is measured
    assert len({store.parts, *found}) == len(found) + 1
    assert (recorded["seeds"], recorded["visible_damage"]) == (1, 0.003)
