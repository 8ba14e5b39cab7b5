"""Plugins by name: transports and stream stores are entry points of installed packages."""

import re
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Any, Final

from trionode.errors import ConfigError

#: The entry-point groups, each with what its plugins are called.
TRANSPORTS: Final = "trionode.transports"
STREAM_STORES: Final = "trionode.stream_stores"
KINDS: Mapping[str, str] = {TRANSPORTS: "transport", STREAM_STORES: "stream store"}


def plugin_names(group: str) -> list[str]:
    """Return the sorted names of the installed plugins of a group."""
    return sorted({entry.name for entry in entry_points(group=group)})


def load_plugin(group: str, name: str) -> Callable[..., Any]:
    """Import what an entry point names.

    Args:
      group: TRANSPORTS or STREAM_STORES.
      name: The name of the entry point, such as `tcp` or `sqlite`.

    Returns:
      The class or function that makes the transport or opens the store.

    Raises:
      ConfigError: No installed package has such an entry point; or a package that the plugin imports is not installed,
          and the text names the extra that brings it; or the import failed inside an installed package, and `__cause__`
          is the ImportError.
    """
    kind = KINDS[group]
    entry = next(iter(entry_points(group=group, name=name)), None)
    if entry is None:
        names = ", ".join(plugin_names(group)) or "none"
        raise ConfigError(f"no {kind} {name!r} is installed; installed are: {names}")
    try:
        plugin: Callable[..., Any] = entry.load()
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and package and find_spec(package) is None:
            raise ConfigError(
                f"the {kind} {name!r} needs the package {package}, which is not installed: {_install(entry, package)}"
            ) from error
        raise ConfigError(
            f"the {kind} {name!r} is installed, but importing {entry.value} failed: {error}. "
            "Check that the versions of the installed packages fit together"
        ) from error
    return plugin


def _install(entry: EntryPoint, package: str) -> str:
    """Say how to install a package: by the extra that requires it, if the plugin's distribution has one."""
    assert entry.dist is not None
    pattern = re.escape(package).replace("_", "[-_.]")
    wanted = re.compile(rf"""{pattern}\b.*extra == ["']([^"']+)""")
    for requirement in entry.dist.requires or ():
        if match := wanted.match(requirement):
            return f"pip install '{entry.dist.name}[{match[1]}]'"
    return f"pip install it, or install {entry.dist.name} again with what it requires"
