"""The table of rollouts: what every schedule did to every image, kept on disk for ever."""

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ada.files import whole
from ada.rollouts.fingerprints import digest
from ada.schedules import Ladder, Tree
from blockdance.schedule import LETTERS

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


class Table:
    """What schedules did to cases, in memory and on disk.

    Sampling is deterministic given the noise, so a row never changes: it is computed once and serves every ladder, search, λ, epoch,
    policy and run of the same settings. A file holds the rows of one call of the pipeline and is written whole or not at all; other
    settings are another folder.

    Args:
        folder: where tables are kept; None keeps rows in memory only.
        settings: everything that rows depend on beside case and schedule: base weights, sampler, kinds of reuse, what is measured.
    """

    def __init__(self, folder: Path | None, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        self.folder = None if folder is None else folder / digest(settings)
        self._values: dict[Case, dict[str, dict[str, float]]] = {}
        self._sights: dict[Case, dict[str, Tensor]] = {}
        self._known: set[Path] = set()
        if folder is None or self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        written = json.dumps(settings, indent=1, default=str) + "\n"
        (self.folder / "settings.json").write_text(written, encoding="utf-8")
        self.reload()

    def reload(self) -> None:
        """Takes up what other processes have written since."""
        if self.folder is None:
            return
        for file in sorted(set(self.folder.glob("*.safetensors")) - self._known):
            self._read(file)

    def __len__(self) -> int:
        return sum(map(len, self._values.values()))

    def knows(self, case: Case, schedule: str, name: str = "damage") -> bool:
        """Whether a value under a schedule, as `name_of` gives it, is known of a case."""
        return name in self._values.get(case, {}).get(schedule, ())

    def has_seen(self, case: Case, beginning: str) -> bool:
        """Whether it is known what a policy sees of a case after these actions."""
        return beginning in self._sights.get(case, ())

    def values(self, case: Case, schedules: Sequence[str], name: str) -> Tensor:
        """A value (`damage`, or a part of the reward) under each of the schedules: `(schedules,)`."""
        known = self._values[case]
        return torch.tensor([known[schedule][name] for schedule in schedules])

    def sights(self, case: Case, beginnings: Sequence[str]) -> Tensor:
        """What a policy sees after each of the beginnings: `(beginnings, width)`."""
        return torch.stack([self._sights[case][beginning] for beginning in beginnings])

    def add(
        self,
        rows: Sequence[tuple[Case, str]],
        values: Mapping[str, Tensor],
        seen: Sequence[tuple[Case, str]] = (),
        sights: Tensor | None = None,
    ) -> None:
        """Keeps what is not known yet.

        Args:
            rows: cases and schedules.
            values: by name, `(rows,)`.
            seen: cases and beginnings of schedules.
            sights: what a policy sees after these, `(seen, width)`.

        Raises:
            OSError: the disk is full or not writable; rows that are on it stay good.
        """
        new = [place for place, row in enumerate(rows) if not all(self.knows(*row, name) for name in values)]
        new_seen = [place for place, row in enumerate(seen) if not self.has_seen(*row)]
        tensors = {f"values.{name}": value.detach().float().cpu()[new].contiguous() for name, value in values.items()}
        if sights is not None:
            tensors["sights"] = sights.detach().float().cpu()[new_seen].contiguous()
        rows, seen = [rows[place] for place in new], [seen[place] for place in new_seen]
        if self.folder is not None and (rows or seen):
            self._write(self.folder, rows, seen, tensors)
        self._take(rows, seen, tensors)

    def _write(
        self, folder: Path, rows: Sequence[tuple[Case, str]], seen: Sequence[tuple[Case, str]], tensors: dict[str, Tensor]
    ) -> None:
        cases = {case: place for place, case in enumerate(dict.fromkeys(case for case, _ in (*rows, *seen)))}
        content = {
            "cases": json.dumps([case.to_json() for case in cases], ensure_ascii=False),
            "rows": json.dumps([[cases[case], schedule] for case, schedule in rows]),
            "seen": json.dumps([[cases[case], beginning] for case, beginning in seen]),
        }
        file = folder / f"{digest(content)}.safetensors"
        try:
            with whole(file) as partial:
                save_file(tensors, partial, content)
            self._known.add(file)
        except (OSError, SafetensorError) as error:
            raise OSError(
                f"The rollouts could not be written to {file}: {error}. Make room, or choose another folder for the table, and "
                "give the same command again: it goes on where it was."
            ) from error

    def _take(self, rows: Sequence[tuple[Case, str]], seen: Sequence[tuple[Case, str]], tensors: Mapping[str, Tensor]) -> None:
        columns = {name.removeprefix("values."): value.tolist() for name, value in tensors.items() if name != "sights"}
        for place, (case, schedule) in enumerate(rows):
            known = self._values.setdefault(case, {}).setdefault(schedule, {})
            known |= {name: column[place] for name, column in columns.items() if name not in known}
        for place, (case, beginning) in enumerate(seen):
            self._sights.setdefault(case, {}).setdefault(beginning, tensors["sights"][place])

    def _read(self, file: Path) -> None:
        """Takes up the rows of a file; one that cannot be read is put aside, and its rows are computed again."""
        try:
            with safe_open(file, "pt") as content:
                about = {name: json.loads(value) for name, value in (content.metadata() or {}).items()}
                tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118, it is no mapping
            cases = [Case.from_json(case) for case in about["cases"]]
            rows, seen = ([(cases[place], name) for place, name in about[key]] for key in ("rows", "seen"))
        except FileNotFoundError:
            return  # another process put it aside
        except (SafetensorError, KeyError, ValueError) as error:
            broken = file.with_suffix(".broken")
            with suppress(FileNotFoundError):  # another process has done so
                file.replace(broken)
            logger.warning("%s cannot be read (%s). It is now %s; its rollouts are run again.", file, error, broken.name)
            return
        self._known.add(file)
        self._take(rows, seen, tensors)


def name_of(actions: Sequence[int]) -> str:
    """A schedule, or its beginning, as a table names it: a letter an action."""
    return "".join(LETTERS[action] for action in actions)


def names_of(ladder: Ladder, num_steps: int | None = None) -> tuple[list[str], list[str]]:
    """A ladder's rungs, and the beginnings of schedules at its tree's nodes, as a table names them.

    Args:
        ladder: the rungs.
        num_steps: the steps that it is stretched to; None for its own.
    """
    own = ladder.for_steps(num_steps or ladder.num_steps)
    rungs = [name_of(rung) for rung in own.actions.tolist()]
    nodes = Tree.of(ladder.actions, ladder.decision_steps).nodes.tolist()
    return rungs, [rungs[rung][: own.decision_steps[stage] + 1] for stage, rung in nodes]
