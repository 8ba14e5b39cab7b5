"""What is wrong with a topology, and where: an error that tells of all of it."""

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches

import attrs

from trionode.errors import LocalError

#: The way to a value through tables, by their keys, and lists, by their indices from 0.
KeyPath = tuple[str | int, ...]

_BARE = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)

#: Known names that a message lists before it says that there are more.
SHOWN_NAMES = 20
#: Characters of a value from the file that a message shows.
SHOWN_TEXT = 80


@attrs.frozen
class Position:
    """A place in a file; lines and columns count from 1, columns in characters."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@attrs.frozen
class Problem:
    """One thing that is wrong: the way to it, and what was expected, what came, and what to do."""

    path: KeyPath
    text: str
    position: Position | None = None

    def __str__(self) -> str:
        parts = (str(self.position) if self.position else "", keys_of(self.path), self.text)
        return ": ".join(part for part in parts if part)


class SpecError(LocalError):
    """A topology that can't be meant as it is written; its text has a line for each of the problems, which are all that were found."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        #: At least one, in the order of the files.
        self.problems = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


def keys_of(path: KeyPath) -> str:
    """Write a path as TOML writes dotted keys; an item of a list is told by its index in brackets, from 0."""
    text = ""
    for key in path:
        if isinstance(key, int):
            text += f"[{key}]"
        else:
            text += ("." if text else "") + (key if _BARE.fullmatch(key) else quoted(key))
    return text


def quoted(text: str) -> str:
    """Show a text of the file in quotes, escaped and cut."""
    cut = text if len(text) <= SHOWN_TEXT else text[:SHOWN_TEXT] + "…"
    shown = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in cut.replace("\\", "\\\\"))
    return '"' + shown.replace('"', '\\"') + '"'


def came(value: object) -> str:
    """Say in words what stands in a file."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() if value.bit_length() > 64:  # Python refuses to write the longest ones
            return "a number beyond 64 bits"
        case int() | float():
            return f"the number {value}"
        case str():
            return f"the text {quoted(value)}"
        case Mapping():
            return "a table"
        case list() | tuple():
            return "a list of tables" if value and all(isinstance(each, dict) for each in value) else "a list"
        case _:
            return f"the date or time {value}"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that was most likely meant, if one is near."""
    by_folded = {each.casefold().replace("-", "_"): each for each in known}
    near = get_close_matches(name.casefold().replace("-", "_"), by_folded, n=1, cutoff=0.6)
    return by_folded[near[0]] if near else None


def hint(name: str, known: Iterable[str], *, mark: str = "", are: str = "known are") -> str:
    """Say which known name is near, and all that are known: `did you mean "allow"? known are: allow, run`. Each is shown behind `mark`."""
    names = sorted(known)
    near = nearest(name, names)
    listed = ", ".join(mark + each for each in names[:SHOWN_NAMES]) + (", …" if len(names) > SHOWN_NAMES else "")
    meant = f"did you mean {quoted(mark + near)}? " if near else ""
    return meant + (f"{are}: {listed}" if names else "there are none")
