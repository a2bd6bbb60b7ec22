"""Publishing a policy: weights and options as they are, the card and figures of its folder."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from ada.policy.card import address_card, write_card
from ada.policy.folder import BESIDE, CARD, CONFIG, IncompatiblePolicyError, digest_of, read_folder, write_folder
from ada.policy.hub import PolicyNotFoundError, find_folder, has_card, hub_id, make_repository, push_folder

if TYPE_CHECKING:
    from ada.policy.base import AdaPolicy

REMEDY = (
    "Save the policy to a folder of its own and publish what is there: `policy.save_pretrained(folder)`, then "
    "`AdaPolicy.from_pretrained(folder).push_to_hub(…)`."
)


def publish(
    policy: "AdaPolicy",
    repo_id: str,
    *,
    evaluation: Path | None,
    base_model: str | None,
    revision: str | None,
    private: bool | None,
    commit_message: str,
    token: bool | str | None,
) -> str:
    """Publishes a policy in one commit; returns the commit's address. Its own folder stays as it is. Arguments as in
    `AdaPolicy.push_to_hub`."""
    if base_model is not None and hub_id(base_model) is None:
        raise ValueError(f"`base_model` must be the Hub id of the model that the policy was trained on; got {base_model!r}.")
    base = base_model or policy.base_model.name
    config = policy.config | {"base_model": policy.config["base_model"] | {"name": base}}
    with TemporaryDirectory() as temporary:
        stage = Path(temporary)
        if policy.origin is not None:
            _copy_beside(policy, policy.origin, stage, token)
        write_folder(stage, policy.form, config, policy.state_dict())
        if (stage / CARD).is_file():
            address_card(stage, policy, repo_id, base, evaluation)
        elif evaluation is not None or not has_card(repo_id, token=token):
            write_card(stage, policy, base or "its base model")
            address_card(stage, policy, repo_id, base, evaluation)
        make_repository(repo_id, private=private, token=token)
        return push_folder(stage, repo_id, revision=revision, message=commit_message, token=token)


def _copy_beside(policy: "AdaPolicy", origin: str, stage: Path, token: bool | str | None) -> None:
    """Copies the card and the figures of the folder that the policy came from.

    Raises:
        PolicyNotFoundError: it is no longer there.
        IncompatiblePolicyError: there are other weights in it now, so the figures are another policy's.
    """
    if Path(origin).is_absolute() and not (Path(origin) / CONFIG).is_file():
        raise PolicyNotFoundError(
            f"{origin}, which this policy was loaded from, with its card and figures, is no longer there. {REMEDY}"
        )
    found = find_folder(origin, beside=BESIDE, token=token)
    if digest_of(read_folder(found, origin)[2]) != policy.digest():
        raise IncompatiblePolicyError(
            f"The weights in {origin} are not this policy's, so its card and figures are not either. {REMEDY}"
        )
    for pattern in BESIDE:
        for file in found.glob(pattern):
            shutil.copyfile(file, stage / file.name)
