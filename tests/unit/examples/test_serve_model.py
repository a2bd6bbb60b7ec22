"""The service's engine: a policy that can never serve is refused when it is made, not by every request."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import HTTPException

from ada.policy import IncompatiblePolicyError, WishError
from ada.schedules import LadderError
from examples.serve.app import ImageRequest, Limits, create_app
from examples.serve.model import Answer, Engine, Job, ModelDiedError, ModelProcess, ModelSettings

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


def test_a_batch_is_given_up_before_those_who_wait_for_it() -> None:
    with pytest.raises(ValueError, match=r"`model.batch_timeout` must be below `limits.timeout`.* got 60 and 60 s"):
        create_app(ModelSettings(policy=None), Limits(timeout=60.0))


class DyingProcess(ModelProcess):
    """Dies over every batch of several jobs, in place of a real process."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.ready_while_loading: list[bool] = []
        super().__init__(ModelSettings())

    def _start(self) -> None:
        self._process: Any = SimpleNamespace(is_alive=lambda: True)
        self.ready_while_loading.append(self.is_ready)
        self._is_loaded = True

    def close(self) -> None:
        self._is_loaded = False

    def _ask(self, jobs: Sequence[Job]) -> list[Answer]:
        self.asked.append([job.prompt for job in jobs])
        if len(jobs) > 1:
            raise ModelDiedError("The model gave no answer.")
        return [Answer(b"", [], 0.0, 1)]


def test_a_batch_that_fails_is_tried_again_for_those_who_still_wait() -> None:
    model = DyingProcess()
    answers = model([Job(name, 0) for name in "abc"], is_wanted=lambda place: place != 1)
    assert model.asked == [["a", "b", "c"], ["a"], ["c"]]
    assert [isinstance(answer, Answer) for answer in answers] == [True, False, True]
    assert model.num_restarts == 1


def test_neighbours_keep_their_answers_where_the_model_cannot_be_loaded_again() -> None:
    class Gone(DyingProcess):
        """Dies over the second job as well, and never loads again."""

        def _start(self) -> None:
            if len(self.asked) > 1:
                raise ModelDiedError("It cannot be loaded.")
            super()._start()

        def _ask(self, jobs: Sequence[Job]) -> list[Answer]:
            answers = super()._ask(jobs)
            if jobs[0].prompt == "b":
                raise ModelDiedError("The model gave no answer.")
            return answers

    answers = Gone()([Job(name, 0) for name in "ab"])
    assert [isinstance(answer, Answer) for answer in answers] == [True, False]
    assert str(answers[1]) == "It cannot be loaded."


def test_a_process_that_begins_anew_is_not_ready_while_it_loads() -> None:
    """It is alive then: `/health` says 503 all the same."""
    model = DyingProcess()
    model([Job(name, 0) for name in "ab"])
    assert model.ready_while_loading == [False, False]
    assert model.is_ready
