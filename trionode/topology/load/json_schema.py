"""The JSON Schema of topology files, made from the classes: by it editors complete and check what is written."""

from collections.abc import Mapping

from trionode.topology.spec import TopologySpec, ValueKind
from trionode.topology.types import Choice, FieldType, Key, ListOf, PluginOption, Record, Scalar, TableOf, record_of

#: A value of a JSON document.
Json = str | int | float | bool | None | list["Json"] | dict[str, "Json"]

_TYPES: Mapping[type, str] = {str: "string", int: "integer", float: "number", bool: "boolean"}
_IDENTIFIER = "[IP][0-9a-f]{64}"
_STREAM = "[A-Za-z0-9._-]{1,200}"
_TRANSPORT_ADDRESS = "[A-Za-z_][A-Za-z0-9_]*:.*"
#: The patterns of texts. `trionode check` finds what a pattern can't express.
_PATTERNS: Mapping[ValueKind, str] = {
    ValueKind.ENDPOINT: f"^{_TRANSPORT_ADDRESS}$",
    ValueKind.LISTENING_ENDPOINT: f"^{_TRANSPORT_ADDRESS}$",
    ValueKind.HOST_PORT: r"^.+:[0-9]{1,5}$",
    ValueKind.IDENTIFIER: f"^{_IDENTIFIER}$",
    ValueKind.AUTHORITY: "^([0-9a-f]{2})+$",
    ValueKind.CREDENTIAL: "^([0-9a-f]{2})+$",
    ValueKind.STREAM: f"^{_STREAM}$",
    ValueKind.RELAY: r"^[A-Za-z0-9_.-]{1,64}$",
    ValueKind.NODE_NAME: r"^[A-Za-z0-9_.-]{1,64}$",
    ValueKind.ADDRESS: r"^[^@#:]+$",
    ValueKind.OWN_NAME: r"^[^@].*$",
    ValueKind.ADDRESS_OF_NODE: r"^[^/]+/.+$",
    ValueKind.VAULT: r"^(memory|sqlite:.+)$",
}


def json_schema() -> dict[str, Json]:
    """Return the JSON Schema of a topology file, draft 2020-12."""
    definitions: dict[str, Json] = {}
    root = _record(record_of(TopologySpec), definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A topology of trionode",
        **root,
        "$defs": dict(sorted(definitions.items())),
    }


def _schema(type_: FieldType, definitions: dict[str, Json]) -> dict[str, Json]:
    match type_:
        case Record():
            name = type_.cls.__name__
            if name not in definitions:
                definitions[name] = {}  # a class can contain itself
                definitions[name] = _with_short_forms(type_, definitions)
            return {"$ref": f"#/$defs/{name}"}
        case TableOf():
            table: dict[str, Json] = {"type": "object", "additionalProperties": _schema(type_.each, definitions)}
            if type_.names.value_kind is not None and type_.names.value_kind in _PATTERNS:
                table["propertyNames"] = {"pattern": _PATTERNS[type_.names.value_kind]}
            return table
        case ListOf():
            each = _schema(type_.each, definitions)
            items: dict[str, Json] = {"type": "array", "items": each}
            if type_.value_kind is ValueKind.ROUTE:
                items["minItems"] = 1
            return {"anyOf": [_text_of(type_.each, definitions), items]} if type_.may_be_one else items
        case Choice():
            return {"enum": list(type_.choices)}
        case Scalar():
            scalar: dict[str, Json] = {"type": _TYPES[type_.python_type]}
            if type_.value_kind is not None and type_.value_kind in _PATTERNS:
                scalar["pattern"] = _PATTERNS[type_.value_kind]
            if type_.value_kind is ValueKind.POSITIVE:
                scalar["exclusiveMinimum"] = 0
            if type_.value_kind is ValueKind.INDEX:
                scalar["minimum"] = 0
            return scalar
        case PluginOption():
            return {
                "anyOf": [
                    {"type": ["string", "number", "boolean"]},
                    {"type": "array", "items": {"type": "string"}},
                ]
            }


def _text_of(type_: FieldType, definitions: dict[str, Json]) -> dict[str, Json]:
    """Return the schema of the text that can replace a list of one item."""
    return _schema(
        type_.keys[type_.text_key].type if isinstance(type_, Record) and type_.text_key else type_, definitions
    )


def _with_short_forms(type_: Record, definitions: dict[str, Json]) -> dict[str, Json]:
    table = _record(type_, definitions)
    short: list[Json] = []
    if type_.keywords:
        short.append({"enum": list(type_.keywords)})
    if type_.text_key is not None:
        short.append(_schema(type_.keys[type_.text_key].type, definitions))
    if not short:
        return table
    return {"description": table.pop("description"), "anyOf": [*short, table]}


def _record(type_: Record, definitions: dict[str, Json]) -> dict[str, Json]:
    keys = {name: _key(key, definitions) for name, key in type_.keys.items()}
    required: list[Json] = [name for name, key in type_.keys.items() if key.is_required]
    schema: dict[str, Json] = {"type": "object", "description": _first_sentence(type_.cls), "properties": dict(keys)}
    if required and type_.cls is not TopologySpec:  # one file of several may have no nodes
        schema["required"] = required
    if type_.keywords:  # an empty table would allow no peer
        schema["minProperties"] = 1
    return {**schema, "additionalProperties": False}


def _key(key: Key, definitions: dict[str, Json]) -> dict[str, Json]:
    schema: dict[str, Json] = {"description": key.doc, **_schema(key.type, definitions)}
    if isinstance(key.default, str | int | float):
        schema["default"] = key.default
    return schema


def _first_sentence(cls: type) -> str:
    return (cls.__doc__ or "").strip().split("\n")[0]
