"""Every peer really attaches, really skips work, is the same twice, and leaves the pipeline as it was."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import build_pixart_pipeline
from diffusers.hooks.first_block_cache import FirstBlockCacheConfig

from ada.backbone import Backbone
from ada.evaluation.counting import Count
from ada.evaluation.methods import Method, NotApplicableError, full_method
from ada.evaluation.peers import peer_methods
from ada.evaluation.peers.attach import optional_package
from ada.evaluation.peers.diffusers_caches import DiffusersCache
from ada.evaluation.peers.packages import CacheDit, TGate, TokenMerging
from ada.evaluation.run import Cases, run_batch
from ada.evaluation.subject import Subject

STEPS = 10
CASES = Cases(["a", "b c"], [1, 2], 2)
WHOLE = slice(0, 2)
CACHE_DIT, FIRST_BLOCK = "cache-dit F1, 0.16", "FirstBlockCache 0.2"
SKIPPING = [
    FIRST_BLOCK, "TaylorSeer, sublayers", "TaylorSeer, lite", "MagCache 0.12", "PyramidAttentionBroadcast", "FasterCache",
    "SeaCache, adapted", CACHE_DIT, "T-GATE, gate 3", "T-GATE, gate 6", "ToMe 25%", "ToMe 50%",
]  # fmt: skip


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    pipeline = build_pixart_pipeline()
    with torch.no_grad():
        # so small a noise prediction changes the latents little, and features change little between steps, as in a trained model
        pipeline.transformer.proj_out.weight.mul_(0.02)
    pipeline.save_pretrained(tmp_path / "pipeline")
    return Subject.of(
        Backbone(str(tmp_path / "pipeline"), num_inference_steps=STEPS, guidance_scale=2.0, max_sequence_length=8)
    )


def peers(subject: Subject) -> dict[str, Method]:
    found = {method.name: method for method in peer_methods(subject, ["d"], [7])}
    # features of a random model move more than a trained one's: the thresholds are set where some steps are skipped
    bold = DiffusersCache(lambda _: FirstBlockCacheConfig(threshold=0.6))
    eager = CacheDit({"Fn_compute_blocks": 1, "Bn_compute_blocks": 0, "residual_diff_threshold": 0.9, "max_warmup_steps": 4})
    return found | {
        CACHE_DIT: replace(found[CACHE_DIT], accelerate=eager),
        FIRST_BLOCK: replace(found[FIRST_BLOCK], accelerate=bold),
    }


def counted(subject: Subject, method: Method) -> tuple[Any, float]:
    count = Count()
    generated = run_batch(subject, method, CASES, WHOLE, count)[0]
    return generated.images, count.macs


@pytest.mark.parametrize("name", SKIPPING)
def test_a_peer_skips_work_and_leaves_no_trace(subject: Subject, name: str) -> None:
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


def test_every_peer_is_tested_or_known_to_do_nothing(subject: Subject) -> None:
    others = set(peers(subject)) - set(SKIPPING)
    assert others == {
        "FirstBlockCache 0.05", "FirstBlockCache 0.1", "TaylorSeer, defaults", "MagCache 0.06", "SeaCache, defaults",
        "cache-dit F8, 0.08", "cache-dit F1, 0.08",
    }  # fmt: skip


def test_taylorseer_defaults_attach_nothing_and_the_row_says_so(subject: Subject) -> None:
    with pytest.raises(NotApplicableError, match="attaches no hook to PixArtTransformer2DModel"):
        counted(subject, peers(subject)["TaylorSeer, defaults"])


def test_what_a_peer_raises_becomes_the_reason(subject: Subject) -> None:
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
    with pytest.raises(NotApplicableError, match=r"blockdance-ada\[peers\]"):
        optional_package("a_package_that_nobody_wrote")


def test_tgate_has_no_loop_for_other_pipelines() -> None:
    with pytest.raises(NotApplicableError, match="none for object"), TGate({})(object(), WHOLE):
        pass


def test_token_merging_of_no_tokens_changes_nothing(subject: Subject) -> None:
    nothing = peers(subject)["ToMe 25%"]
    unmerged = replace(nothing, accelerate=TokenMerging(0.0))
    assert torch.equal(counted(subject, unmerged)[0], counted(subject, full_method(STEPS))[0])


def test_tgate_equals_full_compute_until_the_gate(subject: Subject) -> None:
    """A gate after the last step never caches nor drops guidance: the authors' loop is then the pipeline's."""
    late = TGate({"gate_step": STEPS + 1, "sp_interval": 1, "fi_interval": 1, "warm_up": 2})
    method = replace(peers(subject)["T-GATE, gate 3"], accelerate=late)
    images, macs = counted(subject, method)
    reference, full = counted(subject, full_method(STEPS))
    assert macs == full
    torch.testing.assert_close(images, reference, atol=1e-5, rtol=0)
