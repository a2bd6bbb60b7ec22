"""Where a policy comes from, and what a source is called in published results."""

from pathlib import Path

from huggingface_hub.errors import HFValidationError

from ada.policy import AdaPolicy


def load_policy(source: str) -> AdaPolicy:
    """Loads a policy from a folder or the Hub.

    Raises:
        FileNotFoundError: there is none.
    """
    folder = Path(source)
    if (folder.exists() or source.startswith((".", "/", "checkpoints/"))) and not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"No policy in {source} (it has no config.json). Train one with `python train.py`, or give the folder or Hub id "
            "of a trained one."
        )
    try:
        policy: AdaPolicy = AdaPolicy.from_pretrained(source)
    except (OSError, HFValidationError) as error:
        reason = str(error).partition("\n")[0]
        raise FileNotFoundError(
            f"No policy could be loaded from {source}: {reason} Train one with `python train.py`, or give the folder or Hub "
            "id of a trained one."
        ) from error
    return policy.eval()


def public_name(source: str) -> str:
    """A Hub id as it is, a folder by its last part: results are published, and paths are private."""
    path = Path(source)
    return path.resolve().name if path.exists() else source
