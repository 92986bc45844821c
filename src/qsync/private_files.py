"""Checks that folders, files and sockets belong to this user alone.

If another user owns a folder or may write to it, that user could replace a file in it with a link
to another file, or listen on the socket. Each function raises a ConfigError that says what to do.
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
    """Raise ConfigError when another user owns the folder, may write to it, or may replace it."""
    info = folder.lstat()
    if not stat.S_ISDIR(info.st_mode):
        raise ConfigError(f"{folder} is not a folder; remove it, or choose another")
    if info.st_uid != os.geteuid():
        owner = f"user {info.st_uid}, not to this user, {os.geteuid()}"
        msg = f"{folder} belongs to {owner}; choose another folder"
        raise ConfigError(msg)
    if info.st_mode & 0o022:
        raise ConfigError(f"{folder} is writable by other users: chmod go-w {folder}")
    for parent in folder.parents:
        mode = parent.stat().st_mode
        if mode & 0o002 and not mode & stat.S_ISVTX:
            msg = f"{folder}: any user may write to {parent} and put another folder in its place"
            raise ConfigError(msg)


def check_link(path: Path) -> None:
    """Raise ConfigError for a symbolic link created by another user, except root."""
    if path.is_symlink() and path.lstat().st_uid not in (0, os.geteuid()):
        raise ConfigError(f"{path} is a symbolic link of another user; choose another folder")


def check_socket(path: Path) -> None:
    """Raise ConfigError when the path exists and is not a socket of this user."""
    try:
        info = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(info.st_mode):
        raise ConfigError(f"{path} is not a socket; remove it")
    if info.st_uid != os.geteuid():
        raise ConfigError(f"{path} is a socket of user {info.st_uid}; remove it")


def check_data(folder: Path) -> None:
    """Raise ConfigError when a data folder, or a file in it, is a link or belongs to another user.

    The folder may be missing.
    """
    if not os.path.lexists(folder):
        return
    check_folder(folder)
    for path in folder.iterdir():
        os.close(open_file(path, os.O_RDONLY))


def open_file(path: Path, flags: int = OPEN) -> int:
    """Open a regular file of this user and return its descriptor.

    Raises ConfigError for any other file. The function follows no symbolic link, and creates a
    missing file with mode 0600.
    """
    try:
        opened = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):
            raise ConfigError(f"{path} is a symbolic link; remove it") from None
        if error.errno in (errno.ENXIO, errno.EISDIR):
            raise ConfigError(f"{path} is not a regular file; remove it") from None
        raise
    info = os.fstat(opened)
    wrong = ""
    if not stat.S_ISREG(info.st_mode):
        wrong = "is not a regular file"
    elif info.st_uid != os.geteuid():
        wrong = f"belongs to user {info.st_uid}"
    elif info.st_nlink != 1:
        wrong = "has another name as well (a hard link)"
    if wrong:
        os.close(opened)
        raise ConfigError(f"{path} {wrong}; remove it")
    return opened
