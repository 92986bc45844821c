"""Detects changed files by their modification time and size."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

_Mark = tuple[int, int] | None


class FileWatcher:
    """Watches files. A deleted file counts as changed once it exists again."""

    def __init__(self) -> None:
        self._marks: dict[str, _Mark] = {}

    def add(self, files: Iterable[str]) -> None:
        """Watch these files for changes from now on."""
        for file in files:
            if file not in self._marks:
                self._marks[file] = _mark(file)

    def changed_files(self) -> list[str]:
        """Return the files that have changed since the last call."""
        changed = []
        for file, before in self._marks.items():
            now = _mark(file)
            if now is not None and now != before:
                self._marks[file] = now
                changed.append(file)
        return changed


def _mark(file: str) -> _Mark:
    try:
        info = Path(file).stat()
    except OSError:
        return None
    return info.st_mtime_ns, info.st_size
