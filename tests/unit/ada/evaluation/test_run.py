"""Measuring through the stock pipeline: a reference in disguise, a method planted to be worse, resuming after a kill."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from evaluation_runs import CASES, STEPS, WORSE, method, noting, plan_of, run

from ada.evaluation.measure.collect import collect_results, read_complexity
from ada.evaluation.measure.counting import counted_macs
from ada.evaluation.measure.metrics import edge_density
from ada.evaluation.measure.run import measure_methods
from ada.evaluation.measure.store import Store
from ada.evaluation.methods.base import (
    STATIC,
    Cases,
    Method,
    NotApplicableError,
    Run,
    generate,
)
from ada.noise import EVALUATION, noise_seed
from ada.policy import StepPolicy
from ada.rollouts import FrozenPipeline
from ada.statistics import Estimate
from blockdance import Reuse, ReuseSchedule, apply_blockdance, full_compute


def test_the_reference_in_disguise_is_equal(backbone: FrozenPipeline, tmp_path: Path) -> None:
    disguised = method("disguised", full_compute(1, STEPS))
    plan = plan_of(backbone, tmp_path, [disguised], kept=(0, 3, 4))
    reference, equal = collect_results(plan.store, plan.methods, measure_methods(plan), {}, CASES)
    assert equal.per_prompt["perceptual_distance"] == [0.0] * 5
    assert equal.per_prompt["latent_distance"] == [0.0] * 5
    assert equal.estimates["visibly_changed"] == Estimate(0.0, 0.0, 0.0)
    assert equal.per_prompt["ssim"] == pytest.approx([1.0] * 5)
    assert equal.per_prompt["quality"] == reference.per_prompt["quality"]
    assert equal.per_prompt["compute_saved"] == [0.0] * 5
    assert equal.estimates["frechet_distance"].value == pytest.approx(0.0, abs=1e-9)
    for place in (0, 3, 4):
        assert torch.equal(plan.store.image(disguised, place), plan.store.image(plan.methods[0], place))


def test_a_planted_worse_method_is_worse(backbone: FrozenPipeline, tmp_path: Path) -> None:
    _, planted = run(backbone, tmp_path, method("worse", WORSE))
    assert max(planted.per_prompt["ssim"]) < 1
    assert min(planted.per_prompt["perceptual_distance"]) > 0
    assert min(planted.per_prompt["compute_saved"]) > 0.5
    assert planted.estimates["frechet_distance"].value > 1e-6
    assert planted.estimates["cache_bytes"].value > 0


def test_fewer_steps_save_exactly_their_share(backbone: FrozenPipeline, tmp_path: Path) -> None:
    _, fewer = run(backbone, tmp_path, method("fewer", steps=4))
    assert fewer.per_prompt["compute_saved"] == pytest.approx([1 / 3] * 5)
    assert max(fewer.per_prompt["ssim"]) < 1


def test_every_prompt_takes_its_own_row_of_a_schedule(backbone: FrozenPipeline, tmp_path: Path) -> None:
    """Prompt 0 computes everything, prompt 4 reuses most; batches of two must not mix them up."""
    rows = [[0, 0, 0, *(int(place > step) for step in range(1, STEPS - 2))] for place in range(5)]
    schedule = ReuseSchedule(torch.tensor(rows), (Reuse(boundary=2),))
    _, scheduled = run(backbone, tmp_path, method("rows", schedule))
    assert scheduled.actions == rows
    assert scheduled.estimates["num_schedules"].value == len({tuple(row) for row in rows})
    assert scheduled.per_prompt["ssim"][:2] == pytest.approx([1.0, 1.0])
    assert max(scheduled.per_prompt["ssim"][2:]) < 1


def test_every_image_is_made_once(backbone: FrozenPipeline, tmp_path: Path) -> None:
    """Three batches, two methods in turn: no run for counting alone."""
    calls: list[tuple[str, int]] = []
    counted = replace(noting("two", calls), data_dependent=True)
    results = run(backbone, tmp_path, noting("one", calls), counted)
    assert calls == [(name, start) for start in (0, 2, 4) for name in ("one", "two")]
    assert [len(result.per_prompt["ssim"]) for result in results] == [5, 5, 5]
    assert results[2].per_prompt["compute_saved"] == pytest.approx([0.0] * 5)


def test_a_killed_run_goes_on_without_measuring_anything_again(backbone: FrozenPipeline, tmp_path: Path) -> None:
    """Killed in the second batch, after the first method: what was there stays, and all values equal one whole run."""
    calls: list[tuple[str, int]] = []
    with pytest.raises(KeyboardInterrupt):
        run(backbone, tmp_path, method("worse", WORSE), noting("two", calls, stop_at=2))
    assert calls == [("two", 0), ("two", 2)]
    store = Store(tmp_path / "out", {"cases": 5})
    before = store.batch(method("worse", WORSE), slice(2, 4))
    resumed = run(backbone, tmp_path, method("worse", WORSE), noting("two", calls))
    assert calls[2:] == [("two", 2), ("two", 4)]
    assert store.batch(method("worse", WORSE), slice(2, 4)) == before
    whole = run(backbone, tmp_path / "other", method("worse", WORSE), noting("two", []))
    assert [result.per_prompt for result in resumed] == [result.per_prompt for result in whole]


def test_the_same_name_with_other_settings_is_another_method(backbone: FrozenPipeline, tmp_path: Path) -> None:
    calls: list[tuple[str, int]] = []
    first = replace(noting("one", calls), settings={"threshold": 1})
    for each in (first, first, replace(first, settings={"threshold": 2})):
        run(backbone, tmp_path, each)
    assert len(calls) == 2 * 3


def test_more_noise_seeds_run_alone(backbone: FrozenPipeline, tmp_path: Path) -> None:
    """Four prompts with one seed, then with two: the first seed's images are not made again."""
    calls: list[tuple[str, int]] = []
    prompts, indices = ["a", "b c", "d", "e f"], [11, 12, 13, 14]
    store = plan_of(backbone, tmp_path, []).store
    for num_seeds in (1, 2):
        cases = Cases.of(prompts, indices, 2, num_seeds=num_seeds)
        plan = replace(plan_of(backbone, tmp_path, [noting("one", calls)], cases), store=store)
        _, found = collect_results(plan.store, plan.methods, measure_methods(plan), {}, cases)
    assert calls == [("one", start) for start in (0, 2, 4, 6)]
    assert len(found.distances) == 8


def test_a_method_that_does_not_apply_or_skips_nothing_says_so(backbone: FrozenPipeline, tmp_path: Path) -> None:
    @contextmanager
    def refuses(pipeline: Any, images: slice) -> Iterator[Run]:
        raise NotApplicableError("No such blocks.")
        yield Run()

    idle = method("idle", must_save=True)
    busy = method("busy", WORSE, must_save=True)
    _, refused, skipped_nothing, worked = run(backbone, tmp_path, method("refuses", attach=refuses), idle, busy)
    assert refused.reason == "No such blocks."
    assert refused.estimates == {}
    assert "skipped nothing" in str(skipped_nothing.reason)
    assert worked.reason is None


def test_a_reason_that_is_known_before_is_never_another_methods(backbone: FrozenPipeline, tmp_path: Path) -> None:
    """As of another policy, whose budgets have other bounds: nothing else tells the two rows apart."""
    reasons = []
    for reason in ("between 0.6 and 0.9", "between 0.5 and 0.8", None):
        plan = plan_of(backbone, tmp_path, [method("Ada budget 95%", reason=reason)])
        reasons.append(measure_methods(plan)["Ada budget 95%"])
    assert reasons == ["between 0.6 and 0.9", "between 0.5 and 0.8", None]


def test_a_batch_has_prompts_of_one_noise_seed() -> None:
    """So that further seeds leave the batches of the first as they are, and prompts of a batch are neighbours."""
    prompts = range(10)
    assert Cases.of(prompts, prompts, 4).batches() == [slice(0, 4), slice(4, 8), slice(8, 10)]
    assert Cases.of(prompts, prompts, 4, num_seeds=2).batches()[3:] == [slice(10, 14), slice(14, 18), slice(18, 20)]


def breaking(name: str, place: int) -> Method:
    """A method whose batch from this case on has an image of NaN."""

    @contextmanager
    def accelerate(pipeline: Any, images: slice) -> Iterator[Run]:
        decode = pipeline.vae.decode

        def broken(latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            output = decode(latents, *args, **kwargs)
            output[0][-1] = float("nan")
            return output

        with patch.object(pipeline.vae, "decode", broken if images.start == place else decode):
            yield Run()

    return method(name, attach=accelerate)


def test_a_row_with_an_image_that_is_not_finite_says_so_and_stops_no_other(backbone: FrozenPipeline, tmp_path: Path) -> None:
    """Its second batch of three; when the evaluation runs again it is not tried again."""
    for _ in range(2):
        _, broken, worse = run(backbone, tmp_path, breaking("broken", 2), method("worse", WORSE))
        assert str(broken.reason).startswith("On some images it is not finite (NaN or infinite): image, features, quality, ")
        assert broken.estimates == {}
        assert worse.reason is None
        assert worse.estimates.keys() >= {"bounded_damage", "frechet_distance"}


def test_a_reference_that_is_not_finite_stops_the_evaluation(backbone: FrozenPipeline, tmp_path: Path) -> None:
    plan = plan_of(backbone, tmp_path, [])
    with pytest.raises(
        ValueError, match=r"^broken cannot be measured\. On some images it is not finite .* A wider `dtype` may help\.$"
    ):
        measure_methods(replace(plan, methods=[breaking("broken", 0)]))


def test_seeds_of_a_prompt_are_averaged(backbone: FrozenPipeline, tmp_path: Path) -> None:
    """Two prompts with two seeds: the value of a prompt is the mean of its two images', which the seeds make different."""
    cases = Cases.of(["a", "b c"], [3, 9], 2, seed=5, num_seeds=2)
    assert list(cases.prompts) == ["a", "b c", "a", "b c"]
    assert list(cases.seeds) == [noise_seed(seed, index, EVALUATION) for seed in (5, 6) for index in (3, 9)]
    both = run(backbone, tmp_path, method("worse", WORSE), cases=cases)[1]
    singles = [
        run(backbone, tmp_path / str(seed), method("worse", WORSE), cases=Cases.of(["a", "b c"], [3, 9], 2, seed=seed))[1]
        for seed in (5, 6)
    ]
    values = [single.per_prompt["perceptual_distance"] for single in singles]
    assert values[0] != values[1]
    assert both.per_prompt["perceptual_distance"] == pytest.approx([(one + two) / 2 for one, two in zip(*values, strict=True)])


def test_images_do_not_depend_on_the_batch_size(backbone: FrozenPipeline) -> None:
    subject = backbone
    whole = generate(subject, CASES.prompts, CASES.seeds, STEPS)
    for place in range(5):
        single = generate(subject, [CASES.prompts[place]], [CASES.seeds[place]], STEPS)
        torch.testing.assert_close(whole.images[place], single.images[0], atol=1e-4, rtol=0)
        torch.testing.assert_close(whole.latents[place], single.latents[0], atol=1e-3, rtol=1e-3)


def test_latents_are_what_the_pipeline_returns_as_such(backbone: FrozenPipeline) -> None:
    subject = backbone
    generated = generate(subject, ["a"], [3], STEPS)
    generator = torch.Generator().manual_seed(3)
    latents = backbone.pipeline("a", num_inference_steps=STEPS, generator=generator, output_type="latent", **subject.arguments)[
        0
    ]
    torch.testing.assert_close(generated.latents, latents.flatten(1) / backbone.pipeline.vae.config.scaling_factor)
    assert "decode" not in vars(backbone.pipeline.vae)


def test_complexity_is_that_of_the_reference_images(backbone: FrozenPipeline, tmp_path: Path) -> None:
    plan = plan_of(backbone, tmp_path, [method("worse", WORSE)])
    measure_methods(plan)
    found = read_complexity(plan.store, plan.methods[0], CASES)
    images = generate(plan.frozen, CASES.prompts, CASES.seeds, STEPS).images
    assert found["prompt_length"] == [1, 2, 1, 2, 1]
    assert found["edge_density"] == pytest.approx(edge_density(images).tolist(), abs=0.02)


def test_sensitivity_is_the_mean_damage_of_searched_schedules(backbone: FrozenPipeline, tmp_path: Path) -> None:
    searched = [replace(method(name, WORSE), family=STATIC) for name in ("one", "two")]
    plan = plan_of(backbone, tmp_path, [*searched, method("other", steps=3)])
    results = collect_results(plan.store, plan.methods, measure_methods(plan), {}, CASES)
    found = read_complexity(plan.store, plan.methods[0], CASES, results)
    assert found["sensitivity"] == pytest.approx(results[1].per_prompt["bounded_damage"])
    assert "sensitivity" not in read_complexity(plan.store, plan.methods[0], CASES, [results[0], results[3]])


def test_the_policys_own_macs_count_among_its_rows(backbone: FrozenPipeline, tmp_path: Path, policy: StepPolicy) -> None:
    """What its schedules spend by the package's own count, and what its network takes, counted here on its only call."""
    ada = run(backbone, tmp_path, method("ada", policy))[1]
    with apply_blockdance(backbone.pipeline, policy) as handle:
        with counted_macs(policy) as count:  # its forward call, which is all that this policy does
            generate(backbone, ["a"], [11], STEPS)
        spent = float(handle.report().macs_computed[0])
    own = ada.estimates["own_macs_per_image"].value
    assert own == pytest.approx(count.macs)
    assert own > 0
    assert ada.per_prompt["macs_per_image"][0] == pytest.approx(spent + own)


def test_actions_have_names(backbone: FrozenPipeline, tmp_path: Path, policy: StepPolicy) -> None:
    ada = run(backbone, tmp_path, method("ada", policy))[1]
    assert ada.action_names == ["compute", "reuse after block 3, order 1", "reuse after block 1, order 0"]


def test_bounded_damage_and_visible_changes_come_from_the_distances(backbone: FrozenPipeline, tmp_path: Path) -> None:
    planted = run(backbone, tmp_path, method("worse", WORSE))[1]
    distances = planted.distances
    assert planted.per_prompt["bounded_damage"] == pytest.approx([each / (each + 0.003) for each in distances])
    assert planted.per_prompt["visibly_changed"] == [float(each > 0.003) for each in distances]
    assert planted.estimates["median_distance"].value == pytest.approx(sorted(distances)[2])
    assert planted.estimates["perceptual_distance"].low is None


def test_another_visible_damage_needs_no_new_images(backbone: FrozenPipeline, tmp_path: Path) -> None:
    """Of five distances the third is τ: its bounded damage is one half, and the two above it are visible."""
    plan = plan_of(backbone, tmp_path, [method("worse", WORSE)])
    reasons = measure_methods(plan)
    distances = collect_results(plan.store, plan.methods, reasons, {}, CASES)[1].distances
    _, again = collect_results(plan.store, plan.methods, reasons, {}, CASES, sorted(distances)[2])
    assert sorted(again.per_prompt["bounded_damage"])[2] == 0.5
    assert sum(again.per_prompt["visibly_changed"]) == 2


def test_images_that_are_asked_for_later_are_made(backbone: FrozenPipeline, tmp_path: Path) -> None:
    few, every = (plan_of(backbone, tmp_path, [method("worse", WORSE)], kept=places) for places in ([1], range(5)))
    measure_methods(few)
    assert [few.store.has_images(few.methods[1], [place]) for place in range(5)] == [False, True, False, False, False]
    measure_methods(every)
    assert every.store.has_images(every.methods[1], range(5))
