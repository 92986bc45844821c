"""Splits a stream of RESP into commands and replies."""

from __future__ import annotations


def frame_end(data: bytes | bytearray, at: int) -> int | None:
    """Return the end of the RESP frame that begins at `at`; None while it is incomplete."""
    stop = data.find(b"\r\n", at)
    if stop < 0:
        return None
    end, kind = stop + 2, data[at : at + 1]
    if kind == b"$":
        size = int(data[at + 1 : stop])
        end += size + 2 if size >= 0 else 0
        return end if end <= len(data) else None
    if kind == b"*":
        for _ in range(int(data[at + 1 : stop])):
            inner = frame_end(data, end)
            if inner is None:
                return None
            end = inner
    return end


class Frames:
    """Splits a stream of RESP into whole frames."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Add data; return the frames that are now complete."""
        self._data += data
        frames, at = [], 0
        while at < len(self._data) and (end := frame_end(self._data, at)) is not None:
            frames.append(bytes(self._data[at:end]))
            at = end
        del self._data[:at]
        return frames

    def rest(self) -> bytes:
        """Remove and return the incomplete frame at the end."""
        rest = bytes(self._data)
        self._data.clear()
        return rest


def command_name(frame: bytes) -> bytes:
    """Return the name of the command in a frame."""
    parts = frame.split(b"\r\n", 3)
    return parts[2].upper() if len(parts) > 3 else b""
