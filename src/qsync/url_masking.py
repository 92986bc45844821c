"""Masks URLs with passwords in user-facing text."""

from __future__ import annotations

import re
from typing import Final

_CREDENTIALS: Final = re.compile(
    r"""(?i)\b([a-z][a-z0-9+.-]*://)\S*@\S*?(?=['"]?[:;,.]?(?:\s|$))"""
    r"""|\b((?:redis|valkey|unix|embedded)[a-z+]*://)\S*\?\S*?(?=['"]?[:;,.]?(?:\s|$))"""
)


def hide_credentials(text: str) -> str:
    """Return the text, with each URL that may contain a password reduced to its scheme."""
    return _CREDENTIALS.sub(lambda match: f"{match[1] or match[2]}...", text)
