"""Problems of a topology with their positions, and the phrases that their messages share."""

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches

import attrs

from trionode.errors import LocalError

#: The keys of tables, and the indices of lists from 0, that lead to a value.
KeyPath = tuple[str | int, ...]

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)

#: Known names that a message lists at most.
MAX_NAMES = 20
#: Characters of a value from the file that a message shows at most.
MAX_TEXT = 80


@attrs.frozen
class Position:
    """A position in a file.

    Attributes:
      file: The path of the file.
      line: The line, from 1.
      column: The column in characters, from 1.
    """

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@attrs.frozen
class Problem:
    """One thing that is wrong with a topology.

    Attributes:
      path: The keys and indices that lead to it.
      text: What was expected, what came, and what to do.
      position: Its position in a file, None if the topology did not come from a file.
    """

    path: KeyPath
    text: str
    position: Position | None = None

    def __str__(self) -> str:
        parts = (str(self.position) if self.position else "", dotted_keys(self.path), self.text)
        return ": ".join(part for part in parts if part)


class SpecError(LocalError):
    """A topology is not valid. The text has one line for each problem.

    Attributes:
      problems: All problems that were found, at least one, in the order of the files.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        """Make the error.

        Args:
          problems: All problems, at least one.
        """
        self.problems = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


def dotted_keys(path: KeyPath) -> str:
    """Return a path as TOML writes dotted keys, with the index of a list's item in brackets."""
    text = ""
    for key in path:
        if isinstance(key, int):
            text += f"[{key}]"
        else:
            text += ("." if text else "") + (key if _BARE_KEY.fullmatch(key) else quoted(key))
    return text


def quoted(text: str) -> str:
    """Return a text of the file in quotes, escaped and cut to MAX_TEXT characters."""
    cut = text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "…"
    printable = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in cut.replace("\\", "\\\\"))
    return '"' + printable.replace('"', '\\"') + '"'


def describe(value: object) -> str:
    """Return a phrase for a value of a file, such as `the text "on"`."""
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


def closest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most like another one, None if none is."""
    by_folded = {each.casefold().replace("-", "_"): each for each in known}
    near = get_close_matches(name.casefold().replace("-", "_"), by_folded, n=1, cutoff=0.6)
    return by_folded[near[0]] if near else None


def suggest(name: str, known: Iterable[str], *, prefix: str = "", label: str = "known are") -> str:
    """Return the end of a message about an unknown name: `did you mean "allow"? known are: allow, run`.

    Args:
      name: The unknown name.
      known: The names that are known.
      prefix: Text in front of each name.
      label: Text before the list.
    """
    names = sorted(known)
    near = closest(name, names)
    listed = ", ".join(prefix + each for each in names[:MAX_NAMES]) + (", …" if len(names) > MAX_NAMES else "")
    meant = f"did you mean {quoted(prefix + near)}? " if near else ""
    return meant + (f"{label}: {listed}" if names else "there are none")
