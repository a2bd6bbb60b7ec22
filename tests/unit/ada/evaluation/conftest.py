"""What the tests of measuring run on."""

from pathlib import Path

import pytest
from evaluation_runs import build_backbone
from policies import build_step_policy

from ada.policy import StepPolicy
from ada.rollouts import FrozenPipeline


@pytest.fixture
def backbone(tmp_path: Path) -> FrozenPipeline:
    return build_backbone(tmp_path)


@pytest.fixture
def policy(backbone: FrozenPipeline) -> StepPolicy:
    return build_step_policy(backbone)
