"""The JSON Schema of topology files, made from the classes: by it editors complete and check what is written."""

from collections.abc import Mapping

from trionode.topology.spec import TopologySpec, ValueKind
from trionode.topology.types import Choice, Form, Key, ListOf, PluginOption, Record, Scalar, TableOf, record_of

#: A value of a JSON document.
Json = str | int | float | bool | None | list["Json"] | dict[str, "Json"]

_TYPES: Mapping[type, str] = {str: "string", int: "integer", float: "number", bool: "boolean"}
_IDENTIFIER = "[IP][0-9a-f]{64}"
_STREAM = "[A-Za-z0-9._-]{1,200}"
_TRANSPORT_ADDRESS = "[A-Za-z_][A-Za-z0-9_]*:.*"
#: What texts of a meaning look like; what a pattern can't say, `trionode check` does.
_PATTERNS: Mapping[ValueKind, str] = {
    ValueKind.ENDPOINT: f"^{_TRANSPORT_ADDRESS}$",
    ValueKind.LISTENING_ENDPOINT: f"^{_TRANSPORT_ADDRESS}$",
    ValueKind.HOST_PORT: r"^.+:[0-9]{1,5}$",
    ValueKind.IDENTIFIER: f"^{_IDENTIFIER}$",
    ValueKind.STREAM: f"^{_STREAM}$",
    ValueKind.RELAY: r"^[A-Za-z0-9_.-]{1,64}$",
    ValueKind.NODE_NAME: r"^[A-Za-z0-9_.-]{1,64}$",
    ValueKind.ADDRESS: r"^[^@#:]+$",
    ValueKind.OWN_NAME: r"^[^@].*$",
    ValueKind.ADDRESS_OF_NODE: r"^[^/]+/.+$",
    ValueKind.VAULT: r"^(memory|sqlite:.+)$",
}


def json_schema() -> dict[str, Json]:
    """Return the schema of a topology file as JSON values, in draft 2020-12."""
    definitions: dict[str, Json] = {}
    root = _record(record_of(TopologySpec), definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A topology of trionode",
        **root,
        "$defs": dict(sorted(definitions.items())),
    }


def _schema(form: Form, definitions: dict[str, Json]) -> dict[str, Json]:
    match form:
        case Record():
            name = form.cls.__name__
            if name not in definitions:
                definitions[name] = {}  # which keeps its place while it is made
                definitions[name] = _with_short_forms(form, definitions)
            return {"$ref": f"#/$defs/{name}"}
        case TableOf():
            table: dict[str, Json] = {"type": "object", "additionalProperties": _schema(form.each, definitions)}
            if form.names.value_kind is not None and form.names.value_kind in _PATTERNS:
                table["propertyNames"] = {"pattern": _PATTERNS[form.names.value_kind]}
            return table
        case ListOf():
            each = _schema(form.each, definitions)
            items: dict[str, Json] = {"type": "array", "items": each}
            if form.value_kind is ValueKind.ROUTE:
                items["minItems"] = 1
            return {"anyOf": [_text_of(form.each, definitions), items]} if form.may_be_one else items
        case Choice():
            return {"enum": list(form.words)}
        case Scalar():
            scalar: dict[str, Json] = {"type": _TYPES[form.type]}
            if form.value_kind is not None and form.value_kind in _PATTERNS:
                scalar["pattern"] = _PATTERNS[form.value_kind]
            if form.value_kind is ValueKind.POSITIVE:
                scalar["exclusiveMinimum"] = 0
            if form.value_kind is ValueKind.INDEX:
                scalar["minimum"] = 0
            return scalar
        case PluginOption():
            return {
                "anyOf": [
                    {"type": ["string", "number", "boolean"]},
                    {"type": "array", "items": {"type": "string"}},
                ]
            }


def _text_of(form: Form, definitions: dict[str, Json]) -> dict[str, Json]:
    """Return the schema of the text that may stand in place of a list of one."""
    return _schema(form.keys[form.short].form if isinstance(form, Record) and form.short else form, definitions)


def _with_short_forms(form: Record, definitions: dict[str, Json]) -> dict[str, Json]:
    table = _record(form, definitions)
    short: list[Json] = []
    if form.words:
        short.append({"enum": list(form.words)})
    if form.short is not None:
        short.append(_schema(form.keys[form.short].form, definitions))
    if not short:
        return table
    return {"description": table.pop("description"), "anyOf": [*short, table]}


def _record(form: Record, definitions: dict[str, Json]) -> dict[str, Json]:
    keys = {name: _key(key, definitions) for name, key in form.keys.items()}
    required: list[Json] = [name for name, key in form.keys.items() if key.is_required]
    schema: dict[str, Json] = {"type": "object", "description": _first_sentence(form.cls), "properties": dict(keys)}
    if required and form.cls is not TopologySpec:  # one file of several may describe no node
        schema["required"] = required
    if form.words:  # what names nobody is written as a word
        schema["minProperties"] = 1
    return {**schema, "additionalProperties": False}


def _key(key: Key, definitions: dict[str, Json]) -> dict[str, Json]:
    schema: dict[str, Json] = {"description": key.help, **_schema(key.form, definitions)}
    if isinstance(key.default, str | int | float):
        schema["default"] = key.default
    return schema


def _first_sentence(cls: type) -> str:
    return (cls.__doc__ or "").strip().split("\n")[0]
