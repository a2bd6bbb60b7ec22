"""The tape: what was recorded of every case, bounded in memory and on disk; the least recently used goes first."""

import logging
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ada.files import whole
from ada.rollouts.fingerprints import digest
from ada.rollouts.table import Case

logger = logging.getLogger(__name__)

Record = dict[str, Tensor]
"""Tensors of one case by name, on the CPU."""


class Tape:
    """Records of cases. A record never changes: it depends on its case and on `settings` alone.

    Every record is a file of its own, written whole or not at all, so that a file that cannot be read costs one record, which is made
    again. Processes may share a folder; each keeps to its bounds.

    Args:
        memory_bytes: most that is held in memory.
        folder: where records are kept beyond that, and for later runs; None for memory alone.
        settings: everything that records depend on beside their case; other settings are another folder.
        disk_bytes: most that the files take.
    """

    def __init__(
        self,
        memory_bytes: int,
        folder: Path | None = None,
        settings: Mapping[str, Any] | None = None,
        disk_bytes: int = 2**34,
    ) -> None:
        self._memory_bytes, self._disk_bytes = memory_bytes, disk_bytes
        self._records: OrderedDict[Case, Record] = OrderedDict()
        self.num_bytes = 0
        self.folder = None if folder is None else folder / digest(settings)
        self._files: OrderedDict[Path, int] = OrderedDict()
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            known = []
            for file in self.folder.glob("*.safetensors"):
                with suppress(FileNotFoundError):  # another process made room
                    known.append((file.stat(), file))
            self._files.update((file, stat.st_size) for stat, file in sorted(known, key=lambda entry: entry[0].st_mtime))
            self._limit_files()

    def get(self, case: Case) -> Record | None:
        """What is recorded of a case; None where nothing is."""
        if case in self._records:
            self._records.move_to_end(case)
            return self._records[case]
        record = self._read(case)
        if record is not None:
            self._hold(case, record)
        return record

    def put(self, case: Case, record: Record) -> None:
        """Keeps a record, whose tensors are contiguous, on the CPU and nobody's view."""
        if self.folder is not None:
            self._write(case, record)
        self._hold(case, record)

    def _hold(self, case: Case, record: Record) -> None:
        self.num_bytes += _bytes_of(record) - _bytes_of(self._records.pop(case, {}))
        self._records[case] = record
        while self.num_bytes > self._memory_bytes:
            self.num_bytes -= _bytes_of(self._records.popitem(last=False)[1])

    def _file(self, case: Case) -> Path:
        assert self.folder is not None
        return self.folder / f"{digest(case.to_json())}.safetensors"

    def _read(self, case: Case) -> Record | None:
        """The record in a case's file; a file that cannot be read is put aside."""
        if self.folder is None or not (file := self._file(case)).is_file():
            return None
        try:
            with safe_open(file, "pt") as content:
                # copies: what is read otherwise goes on lying in the file
                record = {name: content.get_tensor(name).clone() for name in content.keys()}  # noqa: SIM118, it is no mapping
                written = (content.metadata() or {})["checksum"]
            if written != _checksum(record):
                raise ValueError("its checksum is another")
        except FileNotFoundError:
            return None  # another process made room
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            broken = file.with_suffix(".broken")
            with suppress(OSError):
                file.replace(broken)
            self._files.pop(file, None)
            logger.warning("%s cannot be read (%s). It is now %s; its steps are run again.", file, error, broken.name)
            return None
        if file in self._files:  # else it is another process's
            self._files.move_to_end(file)
        return record

    def _write(self, case: Case, record: Record) -> None:
        file = self._file(case)
        try:
            with whole(file) as partial:
                save_file(record, partial, {"checksum": _checksum(record)})
                size = partial.stat().st_size
        except (OSError, SafetensorError) as error:
            logger.warning("%s cannot be written (%s). The run goes on, with the tape in memory alone.", file, error)
            self.folder = None
            return
        self._files.pop(file, None)
        self._files[file] = size
        self._limit_files()

    def _limit_files(self) -> None:
        total = sum(self._files.values())
        while total > self._disk_bytes:
            file, size = self._files.popitem(last=False)
            file.unlink(missing_ok=True)
            total -= size


def _bytes_of(record: Record) -> int:
    return sum(tensor.nbytes for tensor in record.values())


def _checksum(record: Record) -> str:
    total = 0
    for name in sorted(record):
        content = record[name].flatten().view(torch.uint8).numpy().data
        total = zlib.crc32(content, zlib.crc32(name.encode(), total))
    return f"{total:08x}"
