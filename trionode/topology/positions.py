"""The positions of keys and values in a TOML file, which the standard library's parser does not report."""

import re
import tomllib
from bisect import bisect_right
from collections.abc import Iterator, Mapping

import attrs

from trionode.topology.errors import KeyPath, Position

_TOKEN = re.compile(
    r'''
    (?P<skip>[ \t]+|\#[^\n]*)
    |(?P<newline>\n)
    |(?P<text>"""(?:\\.|[^\\])*?"""(?:"{0,2})|\'\'\'.*?\'\'\'(?:'{0,2})|"(?:\\.|[^"\\])*"|'[^']*')
    |(?P<mark>[][{}=,.])
    |(?P<bare>[^][{}=,.\s\#"']+)
    ''',
    re.VERBOSE | re.DOTALL,
)


@attrs.frozen
class Span:
    """The positions of a key and its value. An item of a list has no key, so both are the same."""

    key: Position
    value: Position


#: The spans of a file, by path.
Positions = Mapping[KeyPath, Span]


def find_positions(text: str, name: str) -> Positions:
    """Return the spans of all keys and list items.

    Args:
      text: Valid TOML, which `tomllib` has parsed, with newlines as line ends.
      name: The name of the file.
    """
    return _Scanner(text, name).scan()


def existing_part(positions: Positions, path: KeyPath) -> KeyPath:
    """Return the longest part of a path that is in the file: a default, or a key that a text replaces, is not."""
    while path and path not in positions:
        path = path[:-1]
    return path


@attrs.frozen
class _Token:
    kind: str
    text: str
    start: int


class _Scanner:
    """Scans the tokens of a valid document."""

    def __init__(self, text: str, name: str) -> None:
        self._name = name
        self._line_starts = [0, *(each.end() for each in re.finditer("\n", text))]
        self._tokens = [*_tokens(text), _Token("newline", "", len(text))]
        self._next = 0
        self._spans: dict[KeyPath, Span] = {}
        #: The number of tables in each list of tables so far.
        self._lists: dict[KeyPath, int] = {}

    def scan(self) -> Positions:
        table: KeyPath = ()
        while self._next < len(self._tokens):
            if self._tokens[self._next].kind == "newline":
                self._next += 1
            elif self._sees("["):
                table = self._header()
            else:
                self._pair(table)
        return self._spans

    def _sees(self, mark: str) -> bool:
        token = self._tokens[self._next]
        return token.kind == "mark" and token.text == mark

    def _take(self) -> _Token:
        self._next += 1
        return self._tokens[self._next - 1]

    def _position(self, token: _Token) -> Position:
        line = bisect_right(self._line_starts, token.start)
        return Position(self._name, line, token.start - self._line_starts[line - 1] + 1)

    def _header(self) -> KeyPath:
        self._take()
        is_list = self._sees("[")
        if is_list:
            self._take()
        keys = self._keys()
        path: KeyPath = ()
        for key, position in keys[:-1]:
            path = self._entered((*path, key))
            self._spans.setdefault(path, Span(position, position))
        key, position = keys[-1]
        path = (*path, key)
        if is_list:
            self._spans.setdefault(path, Span(position, position))
            self._lists[path] = self._lists.get(path, 0) + 1
            path = self._entered(path)
        self._spans.setdefault(path, Span(position, position))
        for _ in range(1 + is_list):
            self._take()
        return path

    def _entered(self, path: KeyPath) -> KeyPath:
        """Return the path into the last table, for a list of tables; any other path stays."""
        return (*path, self._lists[path] - 1) if path in self._lists else path

    def _keys(self) -> list[tuple[str, Position]]:
        """Take the dotted keys of a header or a pair."""
        keys = []
        while True:
            token = self._take()
            (key,) = tomllib.loads(f"{token.text} = 0")
            keys.append((key, self._position(token)))
            if not self._sees("."):
                return keys
            self._take()

    def _pair(self, table: KeyPath) -> None:
        keys = self._keys()
        self._take()
        here = self._position(self._tokens[self._next])
        path = table
        for key, position in keys:
            path = (*path, key)
            self._spans.setdefault(path, Span(position, here))
        self._value(path)

    def _value(self, path: KeyPath) -> None:
        if self._sees("["):
            self._take()
            index = 0
            while self._more("]"):
                here = self._position(self._tokens[self._next])
                self._spans[*path, index] = Span(here, here)
                self._value((*path, index))
                index += 1
        elif self._sees("{"):
            self._take()
            while self._more("}"):
                self._pair(path)
        else:  # a number with a point, or a date, is several tokens
            while not (self._tokens[self._next].kind == "newline" or any(map(self._sees, ",]}"))):
                self._take()

    def _more(self, end: str) -> bool:
        """Skip separators, and the end mark if it comes. Return whether another item follows."""
        while self._sees(",") or self._tokens[self._next].kind == "newline":
            self._take()
        if self._sees(end):
            self._take()
            return False
        return True


def _tokens(text: str) -> Iterator[_Token]:
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup
        assert kind is not None
        if kind != "skip":
            yield _Token(kind, match.group(), match.start())
