"""What every policy has: the model it belongs to, its kinds of reuse, its options, its folder."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import nn
from typing_extensions import Self

from ada.policy.folder import IncompatiblePolicyError, find_folder, push_folder, read_folder, write_folder
from blockdance import PolicyState, Reuse, ReuseSchedule, find_layout
from blockdance.layouts import block_stack


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """Fingerprint of the architecture that a policy was trained on; fine-tunes and LoRAs of it have the same."""

    transformer: str
    """Class name of the transformer."""
    num_blocks: int
    """Length of the block stack."""
    latent_channels: int
    """Channels of the latents."""
    prompt_width: int
    """Width of the prompt embeddings that the transformer takes; 0 for none."""

    @classmethod
    def of(cls, transformer: nn.Module) -> "BaseModel":
        """Reads the fingerprint of a transformer; what its configuration does not say is 0."""
        config: Mapping[str, Any] = getattr(transformer, "config", {})
        widths = [config.get(name) for name in ("caption_channels", "joint_attention_dim", "text_dim", "cross_attention_dim")]
        return cls(
            transformer=type(transformer).__name__,
            num_blocks=len(block_stack(transformer, find_layout(transformer))),
            latent_channels=int(config.get("in_channels") or 0),
            prompt_width=int(next((width for width in widths if isinstance(width, int)), 0)),
        )

    def differences(self, other: "BaseModel") -> list[str]:
        """What differs, one line a field."""
        mine, theirs = asdict(self), asdict(other)
        return [f"{name}: {mine[name]} here, {theirs[name]} there" for name in mine if mine[name] != theirs[name]]


class AdaPolicy(nn.Module, ABC):
    """A trained policy: decides, image by image, which denoising steps reuse cached block outputs (arXiv 2503.15927).

    `from_pretrained` gives the right subclass: `LadderPolicy`, which decides in stages among the rungs of a ladder, or `StepPolicy`,
    the paper's, which decides once about every step by itself.

    Args:
        config: the constructor's arguments, as `config.json` keeps them.
        base_model: fingerprint of the model it is trained on.
        kinds: the kinds of reuse on offer; the first one's boundary is where it sees features.
    """

    form: ClassVar[str]
    """Its name in `config.json`."""
    forms: ClassVar[dict[str, type["AdaPolicy"]]] = {}
    """The subclasses by that name."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        AdaPolicy.forms[cls.form] = cls

    def __init__(self, config: dict[str, Any], base_model: BaseModel, kinds: Sequence[Reuse]) -> None:
        super().__init__()
        self.config = config
        self.base_model = base_model
        self.kinds = tuple(kinds)

    @abstractmethod
    def decision_steps(self, num_steps: int) -> tuple[int, ...]:
        """The steps after which it decides."""

    @abstractmethod
    def decide(self, state: PolicyState) -> ReuseSchedule:
        """Greedy decisions about the steps that are open."""

    @abstractmethod
    def with_options(self, **options: Any) -> Self:
        """The same network with other wishes; the original stays as it is."""

    def check(self, transformer: nn.Module) -> None:
        """Checks that a transformer is like the one it was trained on.

        Raises:
            IncompatiblePolicyError: lists what differs.
        """
        differences = self.base_model.differences(BaseModel.of(transformer))
        if differences:
            raise IncompatiblePolicyError(
                "This policy was trained on another architecture (policy here, your model there): "
                + "; ".join(differences)
                + ". Load a policy made for your model, or train one with train.py."
            )

    # --- its folder ---

    @classmethod
    def from_pretrained(cls, source: str | Path, *, revision: str | None = None) -> Self:
        """Loads a policy, in evaluation mode.

        Args:
            source: folder, or Hub id; `user/name@revision` names a revision too.
            revision: branch, tag or commit on the Hub.

        Raises:
            FileNotFoundError: there is none; it says why.
            IncompatiblePolicyError: it is none, incomplete, of a later version, or of another class than the one asked.
        """
        folder = find_folder(source, revision)
        form, config, weights = read_folder(folder)
        if not issubclass(AdaPolicy.forms.get(form, object), cls):
            raise IncompatiblePolicyError(
                f"The policy in {source} has the form {form!r}; {cls.__name__} reads {sorted(cls.forms)}."
            )
        try:
            policy = AdaPolicy.forms[form](**config)
            policy.load_state_dict(weights, strict=True)
        except (TypeError, ValueError, RuntimeError) as error:
            raise IncompatiblePolicyError(f"The policy in {source} is incomplete or was changed by hand: {error}") from error
        return policy.eval()  # type: ignore[return-value]

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `config.json`, with the options that were set, and `model.safetensors`; a model card that is there stays."""
        write_folder(Path(folder), self.form, self.config, self.state_dict())

    def push_to_hub(self, repo_id: str, folder: str | Path, *, private: bool | None = None) -> str:
        """Publishes the policy with the card and figures of its folder; returns the commit's address.

        Args:
            repo_id: `user/name`; made if it is not there.
            folder: the policy's folder, as training exports it; config and weights in it are written anew.
            private: whether a new repository is private.
        """
        self.save_pretrained(folder)
        return push_folder(Path(folder), repo_id, private=private)

    def _copy(self, **options: Any) -> Self:
        """A policy that shares the weights and has its own options."""
        other = copy.copy(self)
        other.config = self.config | {name: value for name, value in options.items() if name in self.config}
        for name, value in options.items():
            setattr(other, name, value)
        return other

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())
