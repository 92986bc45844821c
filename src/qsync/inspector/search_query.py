"""Parses the language of searches: `type:mail.* state:dead age:>1h no address`. Does no I/O."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn

import msgspec

from qsync.errors import InvalidTask
from qsync.inspector.values import Filter
from qsync.phrase import Phrase, phrase
from qsync.state import TaskState

MAX_QUERY: Final = 1000
"""Maximum number of characters in a search."""

MAX_TERMS: Final = 20

KEYS: Final = {
    "queue": phrase("name of the queue, e.g. queue:mail"),
    "state": phrase("one of %(states)s", states=", ".join(TaskState)),
    "type": phrase("type of the task, e.g. type:mail.*"),
    "error": phrase('text in the last error, e.g. error:"no address"'),
    "key": phrase("fairness key, e.g. key:acme"),
    "id": phrase("text in the id"),
    "args.NAME": phrase("an argument, e.g. args.customer:acme or args.order.lines.0:7"),
    "age": phrase("time since the task died or was enqueued, e.g. age:>1h or age:<2d"),
    "group": phrase("id of an error on the Errors page"),
}
"""Keys of terms, and their meanings; a term without a key is a word in the id, type or error."""

_TERM: Final = re.compile(r'(?:[^\s"]|"[^"]*"?)+')
_KEY: Final = re.compile(r'([a-z]+)(\.[^:"\s]+)?:(.*)', re.DOTALL)
_UNITS: Final = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)")


class Term(msgspec.Struct, frozen=True):
    """One term of a search: key (empty for a word), value, and the text of the term as it was
    typed."""

    key: str
    value: str
    text: str


class SearchQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which tasks a search finds.

    queues  names or patterns of queues; empty means all queues
    states  states of the tasks; empty means all states
    filter  further conditions for the tasks in these queues and states; None means that all tasks
            match
    """

    terms: tuple[Term, ...] = ()
    queues: tuple[str, ...] = ()
    states: tuple[TaskState, ...] = ()
    filter: Filter | None = None

    def __str__(self) -> str:
        return " ".join(term.text for term in self.terms)

    def without(self, index: int) -> str:
        """Return the text of the search without one of its terms."""
        return " ".join(term.text for position, term in enumerate(self.terms) if position != index)


def term_of(key: str, value: str) -> str:
    """Return the term that finds this value, with quotation marks if the value has spaces."""
    text = value.replace('"', "?")
    return f'{key}:"{text}"' if any(char.isspace() for char in text) else f"{key}:{text}"


def duration_in(text: str) -> float | None:
    """Convert a duration like `90`, `90s`, `15m`, `1w` or `1h30m` to seconds; None if invalid."""
    parts = _PART.findall(text)
    if not parts or _PART.sub("", text).strip() or any(unit not in _UNITS for _, unit in parts):
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def parse_search(text: str) -> SearchQuery:
    """Parse a search. Raise InvalidTask with a sentence that names the invalid term."""
    if len(text) > MAX_QUERY:
        problem = phrase(
            "The search has %(number)s characters; %(most)s are allowed.",
            number=len(text), most=MAX_QUERY,
        )  # fmt: skip
        raise InvalidTask(problem)
    texts = _TERM.findall(text)
    if len(texts) > MAX_TERMS:
        problem = phrase(
            "The search has %(number)s terms; %(most)s are allowed.",
            number=len(texts), most=MAX_TERMS,
        )  # fmt: skip
        raise InvalidTask(problem)
    terms = [_term(part) for part in texts]
    fields: dict[str, Any] = {}
    for term in terms:
        if term.key in _SINGLE:
            _set_once(fields, _SINGLE[term.key], term.value, term)
        elif term.key == "age":
            name, seconds = _age(term)
            _set_once(fields, name, seconds, term)
    if args := _args(terms):
        fields["args"] = args
    if words := tuple(term.value for term in terms if not term.key):
        fields["words"] = words
    return SearchQuery(
        terms=tuple(terms),
        queues=_values(terms, "queue"),
        states=tuple(dict.fromkeys(TaskState(name) for name in _values(terms, "state"))),
        filter=Filter(**fields) if fields else None,
    )


_SINGLE: Final = {"type": "type", "error": "error", "id": "id", "key": "key", "group": "group"}


def _term(text: str) -> Term:
    if text.count('"') % 2:
        _fail(text, phrase('A quotation mark (") is not closed; add one at the end of the text.'))
    match = _KEY.fullmatch(text)
    if match is None:
        value = text.replace('"', "")
        if not value:
            _fail(text, phrase("The quoted text is empty."))
        return Term("", value, text)
    name, path, value = match[1], match[2] or "", match[3].replace('"', "")
    key = f"{name}{path}"
    valid = bool(path) if name == "args" else name in KEYS and not path
    if not valid:
        names = ", ".join(f"{name}:" for name in KEYS)
        problem = phrase(
            "Unknown key “%(key)s”; use %(names)s, or put the text in quotation marks.",
            key=_short(key), names=names,
        )  # fmt: skip
        _fail(text, problem)
    if not value:
        _fail(text, phrase("Write a value after “%(key)s:”.", key=_short(key)))
    if name == "state":
        _check_states(text, value)
    return Term(key, value, text)


def _check_states(text: str, value: str) -> None:
    for name in value.split(","):
        if name not in list(TaskState):
            problem = phrase(
                "Unknown state “%(state)s”. Use one of: %(states)s.",
                state=_short(name), states=", ".join(TaskState),
            )  # fmt: skip
            _fail(text, problem)


def _values(terms: Sequence[Term], key: str) -> tuple[str, ...]:
    values = [value for term in terms if term.key == key for value in term.value.split(",")]
    return tuple(dict.fromkeys(value for value in values if value))


def _args(terms: Sequence[Term]) -> tuple[tuple[str, str], ...]:
    return tuple(
        (term.key.removeprefix("args."), term.value)
        for term in terms
        if term.key.startswith("args.")
    )


def _age(term: Term) -> tuple[str, float]:
    """Return the filter's field for an age term, and its value in seconds."""
    sign, text = term.value[:1], term.value[1:]
    if sign not in (">", "<"):
        _fail(term.text, phrase("Write age:>1h for older or age:<1h for newer tasks."))
    seconds = duration_in(text)
    if seconds is None:
        problem = phrase(
            "“%(text)s” is not a duration; write 90s, 15m, 2h, 3d or 1w.", text=_short(text)
        )
        _fail(term.text, problem)
    return ("older_than" if sign == ">" else "newer_than"), seconds


def _set_once(fields: dict[str, Any], name: str, value: object, term: Term) -> None:
    if name in fields:
        _fail(term.text, phrase("“%(key)s:” is given twice; remove one of them.", key=term.key))
    fields[name] = value


def _fail(term: str, why: Phrase) -> NoReturn:
    raise InvalidTask(phrase("Search term “%(term)s”. %(why)s", term=_short(term), why=why))


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}…"


def argument_at(value: Any, path: str) -> list[str]:
    """Return the strings of the argument at a path such as `order.lines.0`; empty if there is none.

    A string is unchanged; other values are written as JSON. A list yields one string per element.
    """
    for name in path.split("."):
        step = _STEPS.get(type(value))
        matches = None if step is None else step(value, name)
        if matches is None:
            return []
        [value] = matches
    values = value if isinstance(value, list | tuple) else [value]
    return [_text(item) for item in values]


def _in_map(value: dict[Any, Any], name: str) -> list[Any] | None:
    if name in value:
        return [value[name]]
    return next(([inner] for key, inner in value.items() if str(key) == name), None)


def _in_list(value: Sequence[Any], name: str) -> list[Any] | None:
    is_index = name.isascii() and name.isdigit() and len(name) < 10
    return [value[int(name)]] if is_index and int(name) < len(value) else None


_STEPS: Final[dict[type, Callable[[Any, str], list[Any] | None]]] = {
    dict: _in_map, list: _in_list, tuple: _in_list,
}  # fmt: skip


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return value if isinstance(value, str) else str(value)
