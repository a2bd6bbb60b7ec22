"""The table of rollouts: what every schedule did to every image, kept on disk for ever."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ada.rollouts.fingerprints import digest

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Case:
    """The image that schedules are tried on.

    Args:
        prompt: a text, a class label, or whatever else the pipeline is told.
        seed: of its noise.
        settings: of the pipeline's call, where they are the case's own: names and numbers, such as `num_inference_steps`.
    """

    prompt: Any
    seed: int
    settings: tuple[tuple[str, Any], ...] = ()

    def to_json(self) -> list[Any]:
        """The case as JSON."""
        return [self.prompt, self.seed, *([dict(self.settings)] if self.settings else [])]

    @classmethod
    def from_json(cls, content: Sequence[Any]) -> "Case":
        """The case that `to_json` gave."""
        prompt, seed, *settings = content
        return cls(prompt, seed, tuple(settings[0].items()) if settings else ())


@dataclass(frozen=True)
class Row:
    """What is known of a case.

    Args:
        values: by name (`damage`, `quality`, …), `(schedules,)`.
        sights: what a policy sees at every node of the tree, `(nodes, width)`.
    """

    values: dict[str, Tensor]
    sights: Tensor


class Table:
    """Rows of one set of schedules under one set of settings, in memory and on disk.

    Sampling is deterministic given the noise, so a row never changes: it is computed once and serves every λ, epoch, policy and run.
    A file holds the rows of one batch and is written whole or not at all; other settings are another folder.

    Args:
        folder: where tables are kept; None keeps rows in memory only.
        settings: everything that rows depend on: base weights, sampler, schedules, what is measured.
    """

    def __init__(self, folder: Path | None, settings: Mapping[str, Any]) -> None:
        self.identity = digest(settings)
        self.folder = None if folder is None else folder / self.identity
        self._rows: dict[Case, Row] = {}
        self._known: set[Path] = set()
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "settings.json").write_text(json.dumps(settings, indent=1, default=str) + "\n", encoding="utf-8")
        self.reload()

    def reload(self) -> None:
        """Takes up what other processes have written since."""
        if self.folder is None:
            return
        for file in sorted(set(self.folder.glob("*.safetensors")) - self._known):
            self._read(file)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, case: Case) -> bool:
        return case in self._rows

    def __getitem__(self, case: Case) -> Row:
        return self._rows[case]

    def add(self, cases: Sequence[Case], values: Mapping[str, Tensor], sights: Tensor) -> None:
        """Keeps rows.

        Args:
            cases: the cases.
            values: by name, `(cases, schedules)`.
            sights: `(cases, nodes, width)`.

        Raises:
            OSError: the disk is full or not writable; rows that are on it stay good.
        """
        kept = {name: value.detach().float().cpu().contiguous() for name, value in values.items()}
        seen = sights.detach().float().cpu().contiguous()
        if self.folder is not None:
            written = [case.to_json() for case in cases]
            names = {"cases": json.dumps(written, ensure_ascii=False)}
            file = self.folder / f"{digest(written)}.safetensors"
            partial = file.with_suffix(f".{os.getpid()}.partial")
            try:
                save_file({"sights": seen} | {f"values.{name}": value for name, value in kept.items()}, partial, names)
                partial.replace(file)
                self._known.add(file)
            except (OSError, SafetensorError) as error:
                with suppress(OSError):
                    partial.unlink()
                raise OSError(
                    f"The rollouts could not be written to {file}: {error}. Make room, or choose another folder (`data.table`), and "
                    "give the same command again: it goes on where it was."
                ) from error
        self._take(cases, kept, seen)

    def _take(self, cases: Sequence[Case], values: Mapping[str, Tensor], sights: Tensor) -> None:
        for place, case in enumerate(cases):
            self._rows[case] = Row({name: value[place] for name, value in values.items()}, sights[place])

    def _read(self, file: Path) -> None:
        """Takes up the rows of a file; one that cannot be read is put aside, and its rows are computed again."""
        try:
            with safe_open(file, "pt") as content:
                cases = [Case.from_json(case) for case in json.loads((content.metadata() or {})["cases"])]
                tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118, it is no mapping
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            broken = file.with_suffix(".broken")
            file.replace(broken)
            logger.warning("%s cannot be read (%s). It is now %s; its rollouts are run again.", file, error, broken.name)
            return
        self._known.add(file)
        sights = tensors.pop("sights")
        self._take(cases, {name.removeprefix("values."): value for name, value in tensors.items()}, sights)


def stack(table: Table, cases: Sequence[Case], name: str) -> Tensor:
    """A value of some cases: `(cases, schedules)`."""
    return torch.stack([table[case].values[name] for case in cases])
