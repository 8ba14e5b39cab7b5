"""The error texts of a failed check."""

from collections.abc import Iterator

import pytest

from trionode.errors import Undelivered


def failures(error: BaseException) -> Iterator[str]:
    """Yield the kind and text of each error in nested groups."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from failures(inner)
    else:
        yield f"{type(error).__name__}: {error}"


def undelivered(count: int | None = None) -> "pytest.RaisesGroup[Undelivered]":
    """Expect that a node's block ends with that many messages that are not acknowledged; None: any number."""
    return pytest.RaisesGroup(
        pytest.RaisesExc(Undelivered, check=lambda error: count in {None, error.count}), flatten_subgroups=True
    )
