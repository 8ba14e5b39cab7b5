"""The error texts of a failed check."""

from collections.abc import Iterator


def failures(error: BaseException) -> Iterator[str]:
    """Yield the kind and text of each error in nested groups."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from failures(inner)
    else:
        yield f"{type(error).__name__}: {error}"
