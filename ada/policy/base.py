"""What every policy has: the model it belongs to, its kinds of reuse, its options, its folder."""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from typing_extensions import Self

from ada.policy.folder import IncompatiblePolicyError, digest_of, read_folder, write_folder
from ada.policy.hub import find_folder, hub_id
from ada.policy.publishing import publish
from ada.policy.wishes import WishError
from ada.reinforce import check_quality_weights
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
    name: str | None = field(default=None, compare=False)
    """Hub id of the model, where it has one. Models of other names are alike where the rest is."""

    @classmethod
    def of(cls, transformer: nn.Module, model: str = "") -> "BaseModel":
        """Reads the fingerprint of a transformer; what its configuration does not say is 0.

        Args:
            transformer: the model.
            model: folder or Hub id that it came from.
        """
        config: Mapping[str, Any] = getattr(transformer, "config", {})
        widths = [config.get(name) for name in ("caption_channels", "joint_attention_dim", "text_dim", "cross_attention_dim")]
        return cls(
            transformer=type(transformer).__name__,
            num_blocks=len(block_stack(transformer, find_layout(transformer))),
            latent_channels=int(config.get("in_channels") or 0),
            prompt_width=int(next((width for width in widths if isinstance(width, int)), 0)),
            name=hub_id(model),
        )

    def differences(self, other: "BaseModel") -> list[str]:
        """What differs, one line a field."""
        mine, theirs = asdict(self), asdict(other)
        return [
            f"{name}: {mine[name]} here, {theirs[name]} there" for name in mine if name != "name" and mine[name] != theirs[name]
        ]


class AdaPolicy(nn.Module, ABC):
    """A trained policy: decides, image by image, which denoising steps reuse cached block outputs (arXiv 2503.15927).

    `from_pretrained` gives the right subclass: `LadderPolicy`, which decides in stages among the rungs of a ladder, or `StepPolicy`,
    the paper's, which decides once about every step by itself.

    Args:
        config: the constructor's arguments, as `config.json` keeps them.
        base_model: fingerprint of the model it is trained on.
        kinds: the kinds of reuse on offer; the first one's boundary is where it sees features.

    Raises:
        ValueError: a λ or a range of λ that is none.
    """

    form: ClassVar[str]
    """Its name in `config.json`."""
    forms: ClassVar[dict[str, type["AdaPolicy"]]] = {}
    """The subclasses by that name."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "form" in vars(cls):  # a subclass of one of these is read where it is asked for by name
            AdaPolicy.forms[cls.form] = cls

    def __init__(self, config: dict[str, Any], base_model: BaseModel, kinds: Sequence[Reuse]) -> None:
        super().__init__()
        self.config = config
        self.base_model = base_model
        self.kinds = tuple(kinds)
        self.origin: str | None = None
        """The folder, or Hub id and commit, that it was loaded from."""
        self.quality_weight = config["quality_weight"]
        self.quality_weight_range = check_quality_weights(config["quality_weight_range"])
        if not 0 < self.quality_weight < math.inf:
            raise WishError(f"`quality_weight` must be a positive number; got {self.quality_weight}.")

    @abstractmethod
    def decision_steps(self, num_steps: int) -> tuple[int, ...]:
        """The steps after which it decides."""

    @abstractmethod
    def decide(self, state: PolicyState) -> ReuseSchedule:
        """Greedy decisions about the steps that are open."""

    @abstractmethod
    def with_options(self, **options: Any) -> Self:
        """The same network with other wishes; the original stays as it is."""

    @abstractmethod
    def check_budget(self, num_steps: int) -> None:
        """Checks that it can decide in so many steps, and keep to its budget, if it has one.

        Raises:
            WishError: the budget cannot be met.
            LadderError: too few steps for the decisions of a ladder.
        """

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
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
    ) -> Self:
        """Loads a policy, in evaluation mode.

        Args:
            source: folder, or Hub id; `user/name@revision` names a revision too.
            revision: branch, tag or commit on the Hub; a folder has none.
            cache_dir, local_files_only, token: where downloads are kept, whether only those are looked at, and the login, as everywhere
                in huggingface_hub.

        Raises:
            PolicyNotFoundError: there is no such folder, repository or revision.
            HubError: the Hub cannot be reached, or the download broke off.
            IncompatiblePolicyError: it is none, incomplete, of a later version, or of another class than the one asked.
        """
        folder = find_folder(source, revision, cache_dir=cache_dir, local_files_only=local_files_only, token=token)
        form, config, weights = read_folder(folder, str(source))
        readable = {name: kind for name, kind in AdaPolicy.forms.items() if issubclass(kind, cls) or issubclass(cls, kind)}
        if form not in readable:
            raise IncompatiblePolicyError(
                f"The policy in {source} has the form {form!r}; {cls.__name__} reads {sorted(readable)}."
            )
        kind = cls if issubclass(cls, readable[form]) else readable[form]
        try:
            policy = kind(**config)
            policy.load_state_dict(weights, strict=True)
            broken = [name for name, tensor in weights.items() if not tensor.isfinite().all()]
            if broken:
                raise ValueError(f"{', '.join(broken)} hold values that are no finite numbers")
        except (TypeError, ValueError, RuntimeError) as error:
            raise IncompatiblePolicyError(f"The policy in {source} is incomplete or was changed by hand: {error}") from error
        # the snapshot of a Hub repository is named after its commit
        is_local = isinstance(source, Path) or Path(source).exists()
        policy.origin = str(folder.absolute()) if is_local else f"{str(source).partition('@')[0]}@{folder.name}"
        return policy.eval()  # type: ignore[return-value]

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `config.json`, with the options that were set, and `model.safetensors`.

        Card and figures that lie there stay with their own weights: those of other weights are moved into `earlier/`.

        Raises:
            OSError: the folder cannot be written to, or the disk is full.
        """
        write_folder(Path(folder), self.form, self.config, self.state_dict())

    def push_to_hub(
        self,
        repo_id: str,
        *,
        evaluation: str | Path | None = None,
        base_model: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        commit_message: str = "Upload policy",
        token: bool | str | None = None,
    ) -> str:
        """Publishes the policy, with the options that were set, and the card and figures that it was loaded with; returns the
        commit's address. Of a policy that was not loaded from anywhere, a card that the repository has is kept, and a new repository
        gets one without figures.

        Args:
            repo_id: `user/name`; made if it is not there.
            evaluation: output folder of `evaluate.py` on this policy, whose table and plot go into the card.
            base_model: Hub id of the model that it was trained on, where that was a local copy.
            revision: branch to publish on, made if it is not there; by default the main one.
            private: whether a new repository is private.
            commit_message: of the one commit.
            token: the login, as everywhere in huggingface_hub.

        Raises:
            HubError: the Hub cannot be reached, broke off, or refuses.
            IncompatiblePolicyError: the folder that it was loaded from holds other weights now, or the evaluation is of others.
            PolicyNotFoundError: that folder is no longer there.
            ValueError: `base_model` is no Hub id, or the card's metadata cannot be read.
        """
        place = None if evaluation is None else Path(evaluation)
        return publish(
            self, repo_id, evaluation=place, base_model=base_model, revision=revision, private=private, commit_message=commit_message,
            token=token,
        )  # fmt: skip

    def on(self, device: torch.device | str) -> Self:
        """The policy on a device: itself where it is there, else a copy, so that whoever uses it on another device is not disturbed."""
        device = torch.device(device)
        is_there = all(tensor.device == device for tensor in [*self.parameters(), *self.buffers()])
        return self if is_there else self._copy().to(device)

    def digest(self) -> str:
        """Sixteen hexadecimal digits that tell its weights from others'."""
        return digest_of(self.state_dict())

    @torch.inference_mode(False)
    def _copy(self, **options: Any) -> Self:
        """A policy that shares the weights' memory and has its own options; moving it to a device leaves this one where it is."""
        shared: dict[int, Any] = {
            id(parameter): nn.Parameter(parameter.detach(), parameter.requires_grad and not parameter.is_inference())
            for parameter in self.parameters()
        }
        shared |= {id(buffer): buffer.detach() for buffer in self.buffers()}
        other = copy.deepcopy(self, shared)
        other.config |= {name: value for name, value in options.items() if name in self.config}
        for name, value in options.items():
            setattr(other, name, value)
        return other

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())
