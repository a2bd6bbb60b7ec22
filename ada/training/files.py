"""Files that are there whole or not at all."""

import os
from contextlib import suppress
from pathlib import Path


def write_whole(file: Path, content: bytes) -> None:
    """Writes a file beside its place and moves it there, so that neither a kill nor a full disk costs the one that is there.

    Raises:
        OSError: says which file, and what to do.
    """
    partial = file.with_name(f"{file.name}.partial")
    try:
        with partial.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise OSError(
            f"{file} could not be written ({error.strerror or error}); what was there before is intact. Make room and give the same "
            "command again: it goes on where it was."
        ) from error
