"""Prepares values of an annotated type for encoding, so that they arrive unchanged. Without I/O."""

from __future__ import annotations

import inspect
import re
from typing import Any

import msgspec

from qsync import codec, msgpack_extensions
from qsync.convert import MISFITS, Convert, is_steady, leaves, misfit
from qsync.round_trip_check import difference


class ValueTransport:
    """Copies values of one annotation into builtin types that arrive unchanged."""

    def __init__(self, annotation: Any, convert: Convert) -> None:
        self.leaves: frozenset[type] = leaves(annotation)
        """Types whose values need no copy and no check."""
        self._steady = is_steady(annotation)
        self._any = annotation is Any or annotation is object
        self._convert = convert
        self._annotation = annotation

    def carry(self, value: Any, *, sort: bool = False, tagged: bool = False) -> Any:
        """Return a copy of builtin types and extensions.

        Raises CodecError if it would arrive changed.

        Dates, UUIDs and similar values become text where the annotation gives their type. Without
        such an annotation, or with `tagged`, they become extensions. `sort` puts sets and dicts in
        a fixed order.
        """
        try:
            steady = self._any or (self._steady and type(value) in (list, dict))
            if steady and msgpack_extensions.is_plain(value):
                return codec.natural(value, sort=sort)
        except msgpack_extensions.NotCarried as error:
            raise codec.CodecError(str(error)) from None
        ways = [codec.tagged, codec.natural]
        if not tagged and not self._any:
            ways.reverse()
        why = ""
        for way in ways:
            try:
                copy = way(value, sort=sort)
                changed = self._changed(value, copy)
            except codec.CodecError as error:
                changed = str(error)
            if changed is None:
                return copy
            why = why or changed
        raise codec.CodecError(why)

    def _changed(self, value: Any, copy: Any) -> str | None:
        """Return how the value would arrive changed; None when it arrives unchanged."""
        data = codec.encode_natural(copy)
        try:
            got = self._convert(msgspec.Raw(data))
        except MISFITS as error:
            return self._refusal(value, misfit(error))
        problem = difference(value, got)
        if problem is None:
            return None
        hint = ""
        if self._any:
            hint = "; annotate it with its type"
        elif " would arrive as " in problem:
            problem = re.sub(r": (\S+) would arrive as (\S+)\Z", r": expected \2, got \1", problem)
            hint = "; give a value of exactly the annotated type"
        return f"{problem.removeprefix(': ')}{hint}"

    def _refusal(self, value: Any, why: str) -> str:
        """Return why the decoder refuses a value, with only the type names if these are the
        reason."""
        type_name = "None" if value is None else type(value).__qualname__
        if not re.fullmatch(r"Expected `[^`]*`, got `[^`]*`", why):
            return f"{type_name} does not fit the annotation: {why}"
        annotation = self._annotation
        name = (
            annotation.__qualname__
            if isinstance(annotation, type)
            else inspect.formatannotation(annotation)
        )
        return f"expected {name}, got {type_name}"
