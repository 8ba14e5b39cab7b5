"""Loading plugins: each of the three reasons for a failure has its own error."""

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from trionode.errors import ConfigError
from trionode.net import plugins
from trionode.net.plugins import STREAM_STORES, TRANSPORTS, load_plugin, plugin_names


def test_an_unknown_name_is_answered_with_the_installed_names() -> None:
    assert {"memory", "sqlite"} <= set(plugin_names(STREAM_STORES))
    with pytest.raises(ConfigError, match=r"no stream store 'redis' is installed; installed are: .*memory, sqlite"):
        load_plugin(STREAM_STORES, "redis")


@pytest.mark.parametrize(
    ("requires", "advice"),
    [
        (["trio>=0.27", 'absent-package<2; extra == "pigeons"'], r"pip install 'a-plugin\[pigeons\]'"),
        (["trio>=0.27"], "pip install it, or install a-plugin again with what it requires"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    requires: list[str], advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lacking_plugin.py").write_text("import absent_package.part\n")
    (tmp_path / "a_plugin-1.dist-info").mkdir()
    metadata = [
        "Metadata-Version: 2.1",
        "Name: a-plugin",
        "Version: 1",
        *(f"Requires-Dist: {each}" for each in requires),
    ]
    (tmp_path / "a_plugin-1.dist-info" / "METADATA").write_text("\n".join(metadata))
    (tmp_path / "a_plugin-1.dist-info" / "entry_points.txt").write_text(
        "[trionode.transports]\nlacking = lacking_plugin:make\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=f"'lacking' needs the package absent_package, .* not installed: {advice}"):
        load_plugin(TRANSPORTS, "lacking")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("from json import no_such_name", "cannot import name 'no_such_name'"),
        ("import json.no_such_module", "No module named 'json.no_such_module'"),
    ],
)
def test_an_import_that_fails_in_an_installed_package_is_not_called_missing(
    source: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_plugin.py").write_text(f"{source}\n")
    monkeypatch.syspath_prepend(tmp_path)
    entry = EntryPoint("broken", "broken_plugin:make", TRANSPORTS)
    monkeypatch.setattr(plugins, "entry_points", lambda **_: [entry])
    with pytest.raises(ConfigError, match=f"is installed, but importing broken_plugin:make failed: {reason}") as caught:
        load_plugin(TRANSPORTS, "broken")
    assert isinstance(caught.value.__cause__, ImportError)
    assert "not installed" not in str(caught.value)
