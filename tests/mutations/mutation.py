"""A mutation: one defence taken out of the code, and the tests that have to fail then."""

from pathlib import Path

import attrs

ROOT = Path(__file__).resolve().parents[2]

#: The attacks of docs/threat_model.md.
ROWS = range(1, 31)


@attrs.frozen
class Mutation:
    """One defence, and the text whose replacement takes it out.

    Args:
      name: What the defence is, in a few words with hyphens.
      rows: The numbers of the attacks that it stands against; empty for a promise of another kind.
      file: The file, below `trionode/` or, with a package of `transports/` in front, there.
      old: The text to replace. It occurs exactly once in the file.
      new: The text in its place.
      tests: Node ids below `tests/`, without `.py`: each passes with the defence, and fails without it.
    """

    name: str
    rows: tuple[int, ...]
    file: str
    old: str = attrs.field(repr=False)
    new: str = attrs.field(repr=False)
    tests: tuple[str, ...]

    @property
    def path(self) -> Path:
        """The file, relative to the checkout."""
        if self.file.startswith("trionode_"):
            return Path("transports", self.file)
        return Path("trionode", self.file)

    @property
    def node_ids(self) -> list[str]:
        """The tests as pytest names them."""
        return [node_id(test) for test in self.tests]

    def apply(self, text: str) -> str:
        """Return the text of the file without the defence; ValueError if it does not have the text exactly once."""
        found = text.count(self.old)
        if found != 1:
            raise ValueError(f"{self.name}: the text to replace occurs {found} times in {self.path}, expected once")
        return text.replace(self.old, self.new)


def node_id(test: str) -> str:
    """Return `protocol/test_session::test_a` as pytest names it."""
    file, _, rest = test.partition("::")
    return f"tests/{file}.py::{rest}"
