"""What loading a pipeline does to diffusers' messages."""

import logging

import pytest

from ada.rollouts.pipeline import _LongCaptions


def test_captions_that_an_encoder_cuts_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("diffusers.pipelines.some.pipeline")
    caplog.handler.addFilter(_LongCaptions())
    for caption in ("one", "two"):
        logger.warning("The following part of your input was truncated because it is too long: %s", caption)
        logger.warning("Something else about %s", caption)
    assert [record.getMessage().rpartition(" ")[2] for record in caplog.records] == ["one", "one", "two"]
