"""What a check says when it fails."""

from collections.abc import Iterator


def failures(error: BaseException) -> Iterator[str]:
    """Each error, out of the groups that nurseries make, as its kind and its text."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from failures(inner)
    else:
        yield f"{type(error).__name__}: {error}"
