"""What a source is called in published results."""

from pathlib import Path


def public_name(source: str) -> str:
    """A Hub id as it is, a folder by its last part: results are published, and paths are private."""
    path = Path(source)
    return path.resolve().name if path.exists() else source
