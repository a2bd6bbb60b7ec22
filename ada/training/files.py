"""What a run writes of itself."""

import os
from pathlib import Path

from ada.files import whole


def write_whole(file: Path, content: bytes) -> None:
    """Writes a file beside its place and moves it there, so that neither a kill nor a full disk costs the one that is there.

    Raises:
        OSError: says which file, and what to do.
    """
    try:
        with whole(file) as partial, partial.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise OSError(
            f"{file} could not be written ({error.strerror or error}); what was there before is intact. Make room and give the same "
            "command again: it goes on where it was."
        ) from error
