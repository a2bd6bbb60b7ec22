"""Publishing at the end of training."""

from pathlib import Path

import pytest

from ada.policy import AdaPolicy, HubError
from ada.training import PushPolicy

SHIPPED = Path(__file__).parents[4] / "checkpoints" / "ada-emoji"


def test_a_policy_that_the_hub_refuses_is_kept_and_told_how_to_publish(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object, **options: object) -> str:
        raise HubError("The Hub refuses.")

    monkeypatch.setattr(AdaPolicy, "push_to_hub", refuse)
    with pytest.raises(HubError) as error:
        PushPolicy("someone/policy").publish(SHIPPED)
    command = f"`python -m ada push --policy {SHIPPED} --repo_id someone/policy`"
    assert str(error.value) == f"The Hub refuses. The trained policy is in {SHIPPED}: {command}."
