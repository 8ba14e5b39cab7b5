"""Options that several commands share: a decorator adds them to a command, which gets one value made of them."""

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any, TypeVar

C = TypeVar("C", bound=Callable[..., Any])


def combine(name: str, make: Callable[..., object], *options: Callable[[Any], Any]) -> Callable[[C], C]:
    """Return a decorator that adds options to a command, which gets their combined value.

    Args:
      name: The parameter of the command that gets the value.
      make: Makes the value. Its parameters are the options, or values that a decorator further out has combined.
      options: Decorators of click, in the order of the help text.
    """
    taken = signature(make).parameters.keys()

    def add(command: C) -> C:
        @wraps(command)
        def with_value(**given: Any) -> object:
            value = make(**{key: given.pop(key) for key in taken & given.keys()})
            return command(**{name: value}, **given)

        decorated: Any = with_value
        for option in reversed(options):
            decorated = option(decorated)
        result: C = decorated
        return result

    return add
