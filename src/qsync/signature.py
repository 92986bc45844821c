"""Encodes the arguments of a function as a payload, and decodes them. Without I/O.

The payload is a map of parameter names to values. `*args` becomes a list under the parameter's
name; each argument in `**kwargs` becomes a key of the map. Defaults are left out, so the server
uses the defaults of its own version of the function. The server checks values against the
annotations with msgspec, or with pydantic if an annotation contains one of pydantic's types.

A value either arrives unchanged, including its type, or `bind` rejects it. If a value could change
on the way, `bind` encodes and decodes it and compares the copy with the original.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from inspect import Parameter
from types import SimpleNamespace
from typing import Any, Final, NamedTuple, NotRequired, Required, Unpack

import msgspec

from qsync import codec
from qsync.convert import MISFITS, Convert, converter, misfit, nodes
from qsync.errors import ConfigError, InvalidTask, QsyncError
from qsync.message import Result
from qsync.suggestions import did_you_mean, option_hint
from qsync.task import Arguments, Task, TaskInfo
from qsync.value_text import shorten
from qsync.value_transport import ValueTransport

_POSITIONAL: Final = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)

_OPTIONS: Final = frozenset(Task.__struct_fields__) - {"type", "payload"}

_NOT_GIVEN: Final = object()
"""Marks an optional key of `**kwargs: Unpack[...]`, which has no default."""

_decode_map = msgspec.msgpack.Decoder(dict[str, msgspec.Raw]).decode


class _PayloadParameter(NamedTuple):
    """A parameter whose value comes from the payload."""

    name: str
    kind: Any
    default: Any
    convert: Convert
    transport: ValueTransport
    item: ValueTransport | None = None
    """Transport of one argument of `*args`; None for the other parameters."""


class Signature:
    """The signature of a task function, read once when the function becomes a task.

    `takes_info` is True when the first parameter is annotated as TaskInfo; that parameter is not in
    the payload.

    Raises ConfigError, which names the parameter, when an annotation cannot be resolved or has a
    type that no payload can hold, or when TaskInfo is not the first parameter.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self._name = name
        self._function_name = getattr(function, "__name__", "task")
        try:
            full_signature = inspect.signature(function)
        except (TypeError, ValueError, NameError) as error:
            raise ConfigError(f"task {name!r}: its signature cannot be read: {error}") from error
        resolve = _Resolver(name, inspect.unwrap(function))
        parameters = list(full_signature.parameters.values())
        hints = [resolve(f"parameter {p.name!r}", p.annotation) for p in parameters]
        full_signature, parameters, hints = _unpacked(name, full_signature, parameters, hints)
        self.takes_info: bool = _takes_info(name, parameters, hints)
        self._names = frozenset(full_signature.parameters)
        if self.takes_info:
            del parameters[0], hints[0]
        self._accepts = full_signature.replace(parameters=parameters)
        self._slots = [_slot(name, p, hint) for p, hint in zip(parameters, hints, strict=True)]
        self._by_name = {
            slot.name: slot for slot in self._slots if slot.kind is not Parameter.VAR_KEYWORD
        }
        self._returns = resolve("the return type", full_signature.return_annotation)

    def result_of(self, record: Result) -> Any:
        """Convert the function's result to its return type. Raise QsyncError on a mismatch.

        If no payload can hold the return type, the result is decoded without a type.
        """
        if not record.is_value:
            return record.value
        try:
            return self._result[0](record.value)
        except MISFITS as error:
            why = misfit(error)
        raise QsyncError(
            f"task {self._name!r} is done, but its result does not match its return type: {why}"
        )

    def carried_result(self, value: Any) -> Any:
        """Return a copy of a handler's result that can be encoded.

        Raises CodecError if `result_of` would change the value.
        """
        transport = self._result[1]
        if type(value) in transport.leaves or type(value) is bytes:
            return value
        return transport.carry(value, tagged=True)

    @cached_property
    def _result(self) -> tuple[Convert, ValueTransport]:
        try:
            convert = converter(self._returns)
        except ConfigError:
            convert, self._returns = converter(Any), Any
        return convert, ValueTransport(self._returns, convert)

    @property
    def required(self) -> list[str]:
        """Names of the parameters without a default, except TaskInfo."""
        return [
            slot.name
            for slot in self._slots
            if slot.default is Parameter.empty
            and slot.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
        ]

    @property
    def single(self) -> list[str]:
        """Names of the parameters that take one value: all but *args, **kwargs and TaskInfo."""
        several = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
        return [slot.name for slot in self._slots if slot.kind not in several]

    def named(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call that `bind` accepts, by name and including defaults."""
        bound = self._accepts.bind(*args, **kwargs)
        bound.apply_defaults()
        return {name: bound.arguments[name] for name in self.single if self._has(name, bound)}

    @staticmethod
    def _has(name: str, bound: inspect.BoundArguments) -> bool:
        return bound.arguments.get(name, _NOT_GIVEN) is not _NOT_GIVEN

    def bind(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], *, sort: bool = False
    ) -> Arguments:
        """Return the arguments as a payload of builtin types, or raise InvalidTask naming a wrong
        argument.

        `sort` puts sets and dicts in a fixed order, so that equal arguments make equal payloads.
        `sort` also sets the result's `identity`: the arguments that differ from their defaults,
        which a unique lock compares.
        """
        try:
            bound = self._accepts.bind(*args, **kwargs).arguments
        except TypeError as error:
            why = self._mismatch(str(error), kwargs)
            raise InvalidTask(f"task {self._name!r}: {why}") from None
        if self._slots and self._slots[-1].kind is Parameter.VAR_KEYWORD:
            extra = bound.pop(self._slots[-1].name, {})
            for name in extra:
                if name in self._names:
                    raise InvalidTask(
                        f"task {self._name!r}: {name!r} is the name of another parameter"
                    )
            bound |= dict(sorted(extra.items())) if sort else extra
        for slot in self._slots:
            if slot.kind is Parameter.VAR_POSITIONAL and slot.name in bound:
                bound[slot.name] = list(bound[slot.name])
        if sort:
            return self._with_identity(bound)
        return Arguments({name: self._carry(name, value) for name, value in bound.items()})

    def _mismatch(self, error: str, kwargs: Mapping[str, Any]) -> str:
        """Return why the arguments do not match the parameters."""
        if error.startswith("too many positional"):
            return f"{error}; it takes ({', '.join(self._by_name)})"
        strange = [name for name in kwargs if name not in self._by_name]
        if not strange or len(self._by_name) < len(self._slots):
            return error
        name = strange[0]
        if name in _OPTIONS:
            use = f"{self._function_name}.options({name}=...).enqueue(...)"
            return f"{name!r} is an option, not a parameter; use {use}"
        hint = did_you_mean(name, self._by_name)
        if not hint and (hint := option_hint(name, _OPTIONS)):
            passed = f" Pass it with {self._function_name}.options(...)"
            hint += passed if "did you mean" in hint else ""
        parameters = ", ".join(self._by_name) or "none"
        return f"{error}; it has no parameter {name!r}, only {parameters}{hint}"

    def _with_identity(self, bound: Mapping[str, Any]) -> Arguments:
        """Return the payload in sorted order, with `identity` set."""
        payload = Arguments({name: self._carry(name, bound[name], sort=True) for name in bound})
        payload.identity = {
            name: value for name, value in payload.items() if not self._is_default(name, value)
        }
        return payload

    def _is_default(self, name: str, carried: Any) -> bool:
        slot = self._by_name.get(name)
        if slot is None or slot.default is Parameter.empty or slot.default is _NOT_GIVEN:
            return False
        try:
            default = self._carry(name, slot.default, sort=True)
        except InvalidTask:  # msgpack cannot encode the default, so no argument equals it
            return False
        return codec.encode(default) == codec.encode(carried)

    def arguments(self, info: TaskInfo) -> tuple[list[Any], dict[str, Any]]:
        """Return the arguments for a call.

        Raises InvalidTask, which names the parameter, on a mismatch.
        """
        try:
            values = _decode_map(info.payload) if info.payload else {}
        except MISFITS as error:
            text = f"the payload of task {self._name!r} is not a map of its arguments: {error}"
            raise InvalidTask(text) from error
        args: list[Any] = [info] if self.takes_info else []
        kwargs: dict[str, Any] = {}
        for slot in self._slots:
            name, kind = slot.name, slot.kind
            if kind is Parameter.VAR_KEYWORD:
                kwargs |= {
                    extra: self._convert(slot, extra, values.pop(extra)) for extra in [*values]
                }
            elif kind is Parameter.VAR_POSITIONAL:
                if name in values:
                    args += self._convert(slot, name, values.pop(name))
            elif name in values:
                value = self._convert(slot, name, values.pop(name))
                if kind is Parameter.KEYWORD_ONLY:
                    kwargs[name] = value
                else:
                    args.append(value)
            elif slot.default is Parameter.empty:
                raise InvalidTask(f"task {self._name!r}: argument {name!r} is missing")
            elif kind is not Parameter.KEYWORD_ONLY:
                args.append(slot.default)
        if values:
            names = ", ".join(self._by_name) or "none"
            text = f"no parameter for {len(values)} of the payload's arguments; parameters: {names}"
            raise InvalidTask(f"task {self._name!r}: {text}")
        return args, kwargs

    def from_json(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        """Convert arguments from JSON values to the types of their annotations.

        Arguments without a parameter stay unchanged; `bind` rejects them later. Raises InvalidTask,
        which names the parameter, on a mismatch.
        """
        rest, extra = self._of_kind(Parameter.VAR_POSITIONAL), self._of_kind(Parameter.VAR_KEYWORD)
        named = (Parameter.VAR_POSITIONAL, Parameter.KEYWORD_ONLY, Parameter.VAR_KEYWORD)
        slots = [slot for slot in self._slots if slot.kind not in named]
        values = [self._from_json(slot, value) for slot, value in zip(slots, args, strict=False)]
        others = list(args[len(slots) :])
        values += others if rest is None else self._from_json(rest, others)
        by_name = {name: self._by_name.get(name, extra) for name in kwargs}
        return values, {
            name: value if (slot := by_name[name]) is None else self._from_json(slot, value)
            for name, value in kwargs.items()
        }

    def _of_kind(self, kind: Any) -> _PayloadParameter | None:
        return next((slot for slot in self._slots if slot.kind is kind), None)

    def _from_json(self, slot: _PayloadParameter, value: Any) -> Any:
        try:
            data = codec.encode(value)
        except codec.CodecError as error:
            raise InvalidTask(f"task {self._name!r}: argument {slot.name!r}: {error}") from None
        return self._convert(slot, slot.name, msgspec.Raw(data))

    def _carry(self, name: str, value: Any, *, sort: bool = False) -> Any:
        slot = self._by_name.get(name) or self._slots[-1]
        if type(value) in slot.transport.leaves:
            return value
        try:
            if slot.item is not None and _check_items(slot.item, value):
                return value
            return slot.transport.carry(value, sort=sort)
        except codec.CodecError as error:
            text = f"task {self._name!r}: argument {name!r}: {error}"
        raise InvalidTask(text)

    def _convert(self, slot: _PayloadParameter, name: str, data: msgspec.Raw) -> Any:
        try:
            return slot.convert(data)
        except MISFITS as error:
            why = misfit(error)
        # Raised outside of `except`, since the original error may quote the payload.
        where = f"argument {name!r}" if name == slot.name else f"an argument of **{slot.name}"
        raise InvalidTask(f"task {self._name!r}: {where}: {why}")


class _Resolver:
    """Resolves annotations, which may be strings, to types.

    Raises ConfigError if an annotation cannot be resolved.
    """

    def __init__(self, name: str, function: Any) -> None:
        self._name = name
        self._globals = getattr(function, "__globals__", {})
        self._locals = {
            parameter.__name__: parameter for parameter in getattr(function, "__type_params__", ())
        }

    def __call__(self, where: str, annotation: Any) -> Any:
        if annotation is Parameter.empty:
            return Any
        holder = SimpleNamespace(__annotations__={"it": annotation})
        try:
            hints = typing.get_type_hints(holder, self._globals, self._locals, include_extras=True)
        except Exception as error:
            raise ConfigError(
                f"task {self._name!r}: the annotation of {where}, {shorten(annotation)}, cannot be "
                f"resolved: {error}; define or import it at the top of its module, and not "
                "under TYPE_CHECKING"
            ) from error
        return hints["it"]


def _takes_info(name: str, parameters: Sequence[Parameter], hints: Sequence[Any]) -> bool:
    """Return whether the first parameter is TaskInfo.

    Raise ConfigError if another parameter is TaskInfo.
    """
    first = bool(hints) and hints[0] is TaskInfo and parameters[0].kind in _POSITIONAL
    for parameter, hint in list(zip(parameters, hints, strict=True))[int(first) :]:
        if any(isinstance(node, type) and issubclass(node, TaskInfo) for node in nodes(hint)):
            raise ConfigError(
                f"task {name!r}: parameter {parameter.name!r}: only the first parameter may be "
                "TaskInfo, and it must be positional and of no other type"
            )
    return first


def _unpacked(
    name: str, full_signature: inspect.Signature, parameters: list[Parameter], hints: list[Any]
) -> tuple[inspect.Signature, list[Parameter], list[Any]]:
    """Replace `**kwargs: Unpack[SomeTypedDict]` with a keyword-only parameter for each key."""
    if not parameters or typing.get_origin(hints[-1]) is not Unpack:
        return full_signature, parameters, hints
    [fields] = typing.get_args(hints[-1])
    resolved = typing.get_type_hints(fields, include_extras=True)
    parameters, hints = parameters[:-1], hints[:-1]
    for field, hint in resolved.items():
        while typing.get_origin(hint) in (Required, NotRequired):
            [hint] = typing.get_args(hint)
        if field in {parameter.name for parameter in parameters}:
            raise ConfigError(f"task {name!r}: {field!r} is both a parameter and a key of **kwargs")
        default = Parameter.empty if field in fields.__required_keys__ else _NOT_GIVEN
        parameters.append(Parameter(field, Parameter.KEYWORD_ONLY, default=default))
        hints.append(hint)
    return full_signature.replace(parameters=parameters), parameters, hints


def _slot(name: str, parameter: Parameter, hint: Any) -> _PayloadParameter:
    several = parameter.kind is Parameter.VAR_POSITIONAL
    annotation = list[hint] if several else hint
    try:
        convert = converter(annotation)
        item = ValueTransport(hint, converter(hint)) if several else None
    except ConfigError as error:
        raise ConfigError(f"task {name!r}: parameter {parameter.name!r}: {error}") from error
    transport = ValueTransport(annotation, convert)
    return _PayloadParameter(
        parameter.name, parameter.kind, parameter.default, convert, transport, item
    )


def _check_items(transport: ValueTransport, values: Sequence[Any]) -> bool:
    """Return whether msgpack carries all arguments of `*args` unchanged without a copy.

    Raise CodecError, which names the position, if an argument does not match the annotation.
    """
    plain = True
    for index, value in enumerate(values):
        if type(value) not in transport.leaves:
            plain = False
            try:
                transport.carry(value)
            except codec.CodecError as error:
                raise codec.CodecError(f"[{index}]: {error}") from None
    return plain
