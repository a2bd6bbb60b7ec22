"""What loading a pipeline does to diffusers' messages."""

import logging

from ada.rollouts.pipeline import _LongCaptions


def test_captions_that_an_encoder_cuts_are_told_once() -> None:
    shown = _LongCaptions()
    told = []
    for caption in ("one", "two"):
        for message in (
            f"The following part of your input was truncated because it is too long: {caption}",
            f"Else: {caption}",
        ):
            record = logging.LogRecord("diffusers.pipelines.some.pipeline", logging.WARNING, __file__, 1, message, (), None)
            if shown.filter(record):
                told.append(message.rpartition(" ")[2])
    assert told == ["one", "one", "two"]
