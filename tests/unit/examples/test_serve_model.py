"""The service's engine: a policy that can never serve is refused when it is made, not by every request."""

import json
import shutil
from pathlib import Path

import pytest
from fastapi import HTTPException

from ada.policy import IncompatiblePolicyError, WishError
from ada.schedules import LadderError
from examples.serve.app import ImageRequest, Limits, create_app
from examples.serve.model import Engine, ModelSettings

CHECKPOINTS = Path(__file__).parents[3] / "checkpoints"


def engine(folder: Path, steps: int = 20) -> Engine:
    return Engine(ModelSettings(pipeline=str(CHECKPOINTS / "emoji-dit"), policy=str(folder), steps=steps))


def test_a_policy_that_cannot_serve_is_refused_at_once(tmp_path: Path) -> None:
    shutil.copytree(CHECKPOINTS / "ada-emoji", tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    engine(tmp_path)
    with pytest.raises(LadderError, match="decisions need 10 steps or more, and this generation has 6"):
        engine(tmp_path, steps=6)
    (tmp_path / "config.json").write_text(json.dumps(config | {"compute": 0.41}))
    with pytest.raises(WishError, match="the most saving rung at 10 steps"):
        engine(tmp_path, steps=10)
    with pytest.raises(WishError, match="the most saving rung at 10 steps"):
        create_app(ModelSettings(policy=str(tmp_path), steps=10), Limits())
    config["base_model"]["num_blocks"] = 28
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(IncompatiblePolicyError, match="num_blocks: 28 here, 16 there"):
        engine(tmp_path)


def test_a_wish_that_the_services_steps_cannot_meet_joins_no_batch() -> None:
    """The policy takes it at its own 20 steps."""
    service = create_app(ModelSettings(policy=str(CHECKPOINTS / "ada-emoji"), steps=10), Limits()).state.service
    assert service.job(ImageRequest(prompt="dog", compute=0.6)).wish == ("compute", 0.6)
    with pytest.raises(HTTPException) as refused:
        service.job(ImageRequest(prompt="dog", compute=0.41))
    assert refused.value.status_code == 422
    assert "the most saving rung at 10 steps" in refused.value.detail


@pytest.mark.parametrize(("name", "value"), [("max_batch", 0), ("max_waiting", -1), ("timeout", 0.0), ("linger", -1.0)])
def test_limits_that_let_no_request_through_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        Limits(**{name: value})
