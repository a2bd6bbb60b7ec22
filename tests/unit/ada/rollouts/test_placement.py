"""A frozen pipeline whose weights wait elsewhere gives the images that it gives on one device, and is the same pipeline."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import build_pixart_pipeline
from ladders import ARGUMENTS, CASES, KINDS, STEPS, build_frozen, build_ladder
from torch import Tensor

from ada.rollouts import FrozenPipeline, References, Tape, roll_out
from ada.rollouts.fingerprints import parts_digest


def images_of(frozen: FrozenPipeline) -> Tensor:
    prompts, seeds = [case.prompt for case in CASES[:2]], [case.seed for case in CASES[:2]]
    return roll_out(frozen, prompts, seeds, build_ladder().actions[[0, 4]].expand(2, -1, -1), KINDS, (2, 4)).images


def count_waiting(frozen: FrozenPipeline) -> int:
    return sum(parameter.is_meta for parameter in frozen.transformer.parameters())


@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_offloaded_weights_are_the_same_pipeline(offload: str) -> None:
    plain, frozen = build_frozen(), build_frozen(offload=offload)
    for _ in range(2):  # a run moves it before training and before each validation
        assert frozen.to("cpu") is frozen
        assert "_hf_hook" in vars(frozen.transformer)
        assert (count_waiting(frozen) > 0) == (offload == "sequential")
        # a matrix product may round otherwise where weights that came back lie elsewhere in memory
        torch.testing.assert_close(images_of(frozen), images_of(plain), rtol=0, atol=2e-6)
    assert frozen.device.type == "cpu"
    assert frozen.fingerprint() == plain.fingerprint()
    assert parts_digest(frozen.pipeline) == parts_digest(plain.pipeline)
    again = frozen.with_settings(num_inference_steps=6, guidance_scale=2.0)
    assert (again.offload, again.num_inference_steps, frozen.num_inference_steps) == (offload, 6, STEPS)
    references = References(frozen, Tape(2**20), KINDS, 2)
    assert references.images(references.of(CASES[:2])).device == torch.device("cpu"), "not where weights wait"


def test_a_transformer_with_a_device_map_stays_where_it_is(tmp_path: Path) -> None:
    build_pixart_pipeline().save_pretrained(tmp_path)
    plain = FrozenPipeline(str(tmp_path), STEPS, ARGUMENTS)
    frozen = FrozenPipeline(str(tmp_path), STEPS, ARGUMENTS, device_map="auto")
    assert frozen.transformer.hf_device_map == {"": "cpu"}, "all that there is for a map here"
    frozen.transformer.to = None  # whoever moves it fails
    assert torch.equal(images_of(frozen.to("cpu")), images_of(plain))
    assert frozen.fingerprint() == plain.fingerprint()
    assert not any(parameter.requires_grad for parameter in frozen.transformer.parameters())
    with pytest.raises(ValueError, match="`device_map` names the device cuda:77, which this machine does not have"):
        FrozenPipeline(str(tmp_path), STEPS, ARGUMENTS, device_map={"": "cuda:77"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"offload": "layers"}, "`offload` must be none, model or sequential; got layers"),
        ({"device_map": "auto"}, "`device_map` is for a pipeline that is loaded here"),
        ({"device_map": "auto", "offload": "model"}, "Give `offload` or `device_map`, not both"),
    ],
)
def test_placements_that_cannot_be_had(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_frozen(**options)


def test_the_precision_of_a_pipeline_that_is_given_is_its_own() -> None:
    with pytest.raises(ValueError, match=r"A pipeline that is given has its precision: leave out `dtype`.* got bfloat16"):
        FrozenPipeline(build_pixart_pipeline(), dtype="bfloat16")
