"""Values written as TOML in any of the layouts that people use, drawn at random."""

import random
from collections.abc import Mapping

Toml = str | int | float | bool | list["Toml"] | dict[str, "Toml"]


def toml_text(tables: Mapping[str, Toml], layout: random.Random) -> str:
    """Write a whole document."""
    lines: list[str] = []
    _table((), tables, layout, lines)
    return "\n".join(lines) + "\n"


def quoted(text: str) -> str:
    escaped = "".join(
        f"\\u{ord(each):04x}" if ord(each) < 32 or ord(each) == 127 else "\\" + each if each in '"\\' else each
        for each in text
    )
    return f'"{escaped}"'


def _key(key: str, layout: random.Random) -> str:
    if key and all(each.isascii() and (each.isalnum() or each in "_-") for each in key) and layout.random() < 0.8:
        return key
    if "'" not in key and key.isprintable() and layout.random() < 0.5:
        return f"'{key}'"
    return quoted(key)


def _dotted(path: tuple[str, ...], layout: random.Random) -> str:
    return layout.choice([".", " . "]).join(_key(key, layout) for key in path)


def _noise(layout: random.Random) -> list[str]:
    return layout.choice([[], [], [""], ["# a comment with [brackets] = 'and quotes"], ["", "\t# é"]])


def _table(path: tuple[str, ...], table: Mapping[str, Toml], layout: random.Random, lines: list[str]) -> None:
    later: list[tuple[str, Toml]] = []
    for key, value in table.items():
        is_list_of_tables = isinstance(value, list) and value and all(isinstance(each, dict) for each in value)
        if (isinstance(value, dict) or is_list_of_tables) and layout.random() < 0.7:
            later.append((key, value))
        elif isinstance(value, dict) and len(value) == 1 and layout.random() < 0.5:
            ((inner, only),) = value.items()
            lines.append(f"{_dotted((key, inner), layout)} = {_value(only, layout)}")
        else:
            lines.append(f"{_key(key, layout)}{layout.choice([' = ', '='])}{_value(value, layout)}")
        lines += _noise(layout)
    for key, value in later:
        for each in value if isinstance(value, list) else [value]:
            assert isinstance(each, dict)
            header = _dotted((*path, key), layout)
            lines.append(f"[[{header}]]" if isinstance(value, list) else f"  [ {header} ] # here")
            _table((*path, key), each, layout, lines)


def _value(value: Toml, layout: random.Random) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str() if "'''" not in value and "'" not in value[-1:] and layout.random() < 0.2 and _is_plain(value):
            return f"'''{value}'''"
        case str() if layout.random() < 0.2:
            return f'""{quoted(value)}""'
        case str():
            return quoted(value)
        case list():
            inner = [_value(each, layout) for each in value]
            if layout.random() < 0.3:
                return "[ # so\n" + "".join(f"  {each}, # a ] comment\n" for each in inner) + "]"
            return "[" + ", ".join(inner) + "]"
        case dict():
            return (
                "{ " + ", ".join(f"{_key(key, layout)} = {_value(each, layout)}" for key, each in value.items()) + " }"
            )


def _is_plain(text: str) -> bool:
    return all(each.isprintable() for each in text)
