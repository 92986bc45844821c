"""Folders, files and sockets that belong to this user alone.

In a folder that somebody else made, or may write to, a file of ours may be a link to another file,
and a socket may be one that somebody else listens on. All are refused: by ConfigError, which says
what to do.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Final

from qsync.errors import ConfigError

OPEN: Final = os.O_RDWR | os.O_CREAT


def check_folder(folder: Path) -> None:
    """Refuse a folder that is another user's, or that others may write to, or may swap."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise ConfigError(f"{folder} is not a folder; remove it, or name another one")
    if found.st_uid != os.geteuid():
        msg = (
            f"{folder} belongs to user {found.st_uid}, this is {os.geteuid()}; name another folder"
        )
        raise ConfigError(msg)
    if found.st_mode & 0o022:
        raise ConfigError(f"{folder} may be written to by other users: chmod go-w {folder}")
    for parent in folder.parents:
        mode = parent.stat().st_mode
        if mode & 0o002 and not mode & stat.S_ISVTX:
            msg = f"{folder}: anybody may write to {parent} and put another folder in its place"
            raise ConfigError(msg)


def check_link(path: Path) -> None:
    """Refuse a symbolic link that another user made, wherever it leads."""
    if path.is_symlink() and path.lstat().st_uid not in (0, os.geteuid()):
        raise ConfigError(f"{path} is a symbolic link of another user; name another folder")


def check_socket(path: Path) -> None:
    """Refuse what stands in the place of a socket of ours, if anything does."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise ConfigError(f"{path} is not a socket; remove it")
    if found.st_uid != os.geteuid():
        raise ConfigError(f"{path} is a socket of user {found.st_uid}; remove it")


def open_file(path: Path, flags: int = OPEN) -> int:
    """Open a regular file that is this user's, by no link; it is made for this user alone."""
    try:
        opened = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):
            raise ConfigError(f"{path} is a symbolic link; remove it") from None
        if error.errno in (errno.ENXIO, errno.EISDIR):
            raise ConfigError(f"{path} is not a regular file; remove it") from None
        raise
    found = os.fstat(opened)
    wrong = ""
    if not stat.S_ISREG(found.st_mode):
        wrong = "is not a regular file"
    elif found.st_uid != os.geteuid():
        wrong = f"belongs to user {found.st_uid}"
    elif found.st_nlink != 1:
        wrong = "has another name as well (a hard link)"
    if wrong:
        os.close(opened)
        raise ConfigError(f"{path} {wrong}; remove it")
    return opened
