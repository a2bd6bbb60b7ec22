"""Every peer really attaches, really skips work, is the same twice, and leaves the pipeline as it was."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import build_pixart_pipeline
from diffusers.hooks.first_block_cache import FirstBlockCacheConfig
from diffusers.hooks.hooks import HookRegistry, ModelHook

from ada.evaluation.measure.counting import run_batch
from ada.evaluation.methods.base import Cases, Method, NotApplicableError
from ada.evaluation.methods.caches import APPLY, attaching, diffusers_cache, left_as_found
from ada.evaluation.methods.packages import cache_dit, optional_package, t_gate, token_merging
from ada.evaluation.methods.peers import one_by_one, peer_methods
from ada.evaluation.methods.static import full_method
from ada.rollouts import FrozenPipeline

ARGUMENTS = {"guidance_scale": 2.0, "max_sequence_length": 8, "use_resolution_binning": False, "clean_caption": False}
STEPS = 10
CASES = Cases(["a", "b c"], [1, 2], 2)
WHOLE = slice(0, 2)
CACHE_DIT, TAYLOR, FIRST_BLOCK = "cache-dit, F1", "cache-dit, F1, TaylorSeer", "FirstBlockCache 0.2"
SKIPPING = [
    FIRST_BLOCK, "FirstBlockCache 0.2, batch 1", "TaylorSeer, sublayers, N=2", "TaylorSeer, sublayers, N=5", "TaylorSeer, lite, N=2",
    "MagCache 0.12", "PyramidAttentionBroadcast", "PyramidAttentionBroadcast, cross 6", "FasterCache", "SeaCache 0.25, power 3",
    "SeaCache 0.12, power 2", CACHE_DIT, TAYLOR, "T-GATE, gate 3", "T-GATE, gate 6", "ToMe 25%", "ToMe 50%",
]  # fmt: skip


@pytest.fixture
def subject(tmp_path: Path) -> FrozenPipeline:
    pipeline = build_pixart_pipeline()
    with torch.no_grad():
        # so small a noise prediction changes the latents little, and features change little between steps, as in a trained model
        pipeline.transformer.proj_out.weight.mul_(0.02)
    pipeline.save_pretrained(tmp_path / "pipeline")
    return FrozenPipeline(str(tmp_path / "pipeline"), STEPS, ARGUMENTS)


def peers(subject: FrozenPipeline) -> dict[str, Method]:
    found = {method.name: method for method in peer_methods(subject, ["d"], [7])}
    # features of a random model move more than a trained one's: the thresholds are set where some steps are skipped
    bold = attaching("diffusers", partial(diffusers_cache, FirstBlockCacheConfig, {"threshold": 0.6}))
    eager = {"Fn_compute_blocks": 1, "Bn_compute_blocks": 0, "residual_diff_threshold": 0.9, "max_warmup_steps": 4}
    return found | {
        CACHE_DIT: replace(found[CACHE_DIT], attach=attaching("cache-dit", partial(cache_dit, eager, None))),
        TAYLOR: replace(found[TAYLOR], attach=attaching("cache-dit", partial(cache_dit, eager, 1))),
        FIRST_BLOCK: replace(found[FIRST_BLOCK], attach=bold),
        "FirstBlockCache 0.2, batch 1": one_by_one(replace(found[FIRST_BLOCK], attach=bold)),
    }


def counted(subject: FrozenPipeline, method: Method) -> tuple[Any, float]:
    ran = run_batch(subject, method, CASES, WHOLE, count=True)
    return ran.generated.images, ran.macs


@pytest.mark.parametrize("name", SKIPPING)
def test_a_peer_skips_work_and_leaves_no_trace(subject: FrozenPipeline, name: str) -> None:
    method, full = peers(subject)[name], full_method(STEPS)
    reference, macs = counted(subject, full)
    images, fewer = counted(subject, method)
    assert 0.2 * macs < fewer < 0.97 * macs
    assert not torch.equal(images, reference)
    assert torch.equal(counted(subject, method)[0], images)
    again, same = counted(subject, full)
    assert torch.equal(again, reference)
    assert same == macs
    assert not any(
        "_diffusers_hook" in vars(module) or "forward" in vars(module) for module in subject.pipeline.transformer.modules()
    )


def test_every_peer_is_tested_or_another_setting_of_one_that_is(subject: FrozenPipeline) -> None:
    every = peer_methods(subject, ["d"], [7])
    tested = {method.family for method in every if method.name in SKIPPING}
    assert {method.family for method in every} - tested == {
        "SeaCache, power 3, batch 1",
        "cache-dit, batch 1",
        "cache-dit with TaylorSeer, batch 1",
    }
    assert len({method.name for method in every}) == len(every)


def test_a_setting_of_each_that_tells_something_runs_by_default(subject: FrozenPipeline) -> None:
    assert [method.name for method in peer_methods(subject, ["d"], [7]) if method.main and method.quick] == [
        "FirstBlockCache 0.2", "TaylorSeer, defaults", "TaylorSeer, sublayers, N=5", "TaylorSeer, lite, N=5", "MagCache 0.06",
        "SeaCache 0.25, power 3", "cache-dit, defaults", "cache-dit, SGLang, TaylorSeer",
    ]  # fmt: skip


def test_the_main_settings_are_the_documented_ones_and_impose_no_warm_up_of_ours(
    subject: FrozenPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TaylorSeer's 3 steps, MagCache's 20 %, SeaCache's one step, cache-dit's 8 and SGLang's 4."""
    known, given = {method.name: method for method in peer_methods(subject, ["d"], [7])}, list[Any]()
    for config in APPLY:
        monkeypatch.setitem(APPLY, config, lambda transformer, config: given.append(config))
    main = [known[name] for name in ("TaylorSeer, lite, N=5", "MagCache 0.06", "SeaCache 0.25, power 3")]
    for method in main:
        with pytest.raises(NotApplicableError, match="attaches no hook"), method.accelerate(subject.pipeline, WHOLE):
            pass
    lite, mag, sea = given
    assert (lite.cache_interval, lite.disable_cache_before_step, lite.max_order) == (5, 3, 1)
    assert (mag.threshold, mag.retention_ratio, mag.max_skip_steps) == (0.06, 0.2, 3)
    assert sea.retention_steps == 1
    assert known["cache-dit, defaults"].settings["max_warmup_steps"] == 8
    assert known["cache-dit, SGLang"].settings["max_warmup_steps"] == 4
    assert all(method.main for method in (*main, known["cache-dit, defaults"], known["cache-dit, SGLang"]))


def test_hooks_that_were_there_stay(subject: FrozenPipeline) -> None:
    """A user's own hook on the transformer, such as one that casts its weights, beside which a peer puts another."""
    registry = HookRegistry.check_if_exists_or_initialize(subject.transformer)
    registry.register_hook(ModelHook(), "own")
    forward = subject.transformer.forward
    with left_as_found(subject.pipeline):
        registry.register_hook(ModelHook(), "peer")
    assert list(registry.hooks) == registry._hook_order == ["own"]
    assert subject.transformer.forward is forward


def test_blocks_and_hooks_come_back_from_a_peer_that_fails(subject: FrozenPipeline) -> None:
    block = subject.transformer.transformer_blocks[0]
    own = block.register_forward_hook(lambda *_: None)

    def fail_half_way() -> None:
        with left_as_found(subject.pipeline):
            block.register_forward_hook(lambda *_: None)
            subject.transformer.transformer_blocks[0] = torch.nn.Identity()
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        fail_half_way()
    assert subject.transformer.transformer_blocks[0] is block
    assert len(block._forward_hooks) == 1
    own.remove()
    assert not block._forward_hooks


def test_the_calibrator_of_cache_dit_extrapolates(subject: FrozenPipeline) -> None:
    """The same blocks are skipped, and something else is put in their place."""
    images, macs = counted(subject, peers(subject)[CACHE_DIT])
    extrapolated, same = counted(subject, peers(subject)[TAYLOR])
    assert same == macs
    assert not torch.equal(images, extrapolated)


def test_taylorseer_defaults_attach_nothing_and_the_row_says_so(subject: FrozenPipeline) -> None:
    with pytest.raises(NotApplicableError, match="attaches no hook to PixArtTransformer2DModel"):
        counted(subject, peers(subject)["TaylorSeer, defaults"])


def test_a_peer_that_has_to_be_calibrated_needs_other_prompts(subject: FrozenPipeline) -> None:
    found = {method.name: method for method in peer_methods(subject, [], [])}
    assert set(found) == set(peers(subject)), "the others need none"
    with pytest.raises(NotApplicableError, match="MagCache has to be calibrated on other prompts: give search prompts"):
        counted(subject, found["MagCache 0.06"])


def test_what_a_peer_raises_becomes_the_reason(subject: FrozenPipeline) -> None:
    """FirstBlockCache without the context that PixArt's pipeline does not set: diffusers says what is missing."""
    method = peers(subject)["FirstBlockCache 0.2"]
    model = type(subject.pipeline.transformer)
    original = model.forward

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no luck")

    model.forward = broken
    try:
        with pytest.raises(NotApplicableError, match="diffusers raised RuntimeError: no luck"):
            counted(subject, method)
    finally:
        model.forward = original
    assert not any("_diffusers_hook" in vars(module) for module in subject.pipeline.transformer.modules())


def test_a_package_that_is_not_there_names_the_extra() -> None:
    with pytest.raises(NotApplicableError, match=r"Install the extra `peers`"):
        optional_package("a_package_that_nobody_wrote")


def test_tgate_has_no_loop_for_other_pipelines() -> None:
    with pytest.raises(NotApplicableError, match="none for object"), t_gate({}, object()):
        pass


def test_token_merging_of_no_tokens_changes_nothing(subject: FrozenPipeline) -> None:
    nothing = peers(subject)["ToMe 25%"]
    unmerged = replace(nothing, attach=attaching("tomesd", partial(token_merging, 0.0)))
    assert torch.equal(counted(subject, unmerged)[0], counted(subject, full_method(STEPS))[0])


def test_tgate_equals_full_compute_until_the_gate(subject: FrozenPipeline) -> None:
    """A gate after the last step never caches nor drops guidance: the authors' loop is then the pipeline's."""
    late = {"gate_step": STEPS + 1, "sp_interval": 1, "fi_interval": 1, "warm_up": 2}
    method = replace(peers(subject)["T-GATE, gate 3"], attach=attaching("tgate", partial(t_gate, late)))
    images, macs = counted(subject, method)
    reference, full = counted(subject, full_method(STEPS))
    assert macs == full
    torch.testing.assert_close(images, reference, atol=1e-5, rtol=0)
