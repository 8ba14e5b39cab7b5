import random
import tomllib
from pathlib import Path
from typing import cast

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.toml_text import Toml, toml_text
from trionode.topology.errors import KeyPath, Problem, SpecError
from trionode.topology.load.decode import decode
from trionode.topology.load.loader import parse_topology
from trionode.topology.positions import find_positions
from trionode.topology.spec import TopologySpec
from trionode.topology.types import Choice, FieldType, ListOf, PluginOption, Record, Scalar, TableOf, record_of

GOOD = (Path(__file__).parent / "good" / "alice_bob_and_a_hub.toml").read_text()

LAYOUTS = st.builds(random.Random, st.integers(0, 1 << 32))
TEXTS = st.text(max_size=8)
KEYS = st.one_of(st.sampled_from(["a", "b-c", "d.e", "", "ü ü", "nodes", "=", "#"]), TEXTS)


def toml_values() -> st.SearchStrategy[Toml]:
    plain: st.SearchStrategy[Toml] = st.one_of(
        TEXTS, st.integers(-(1 << 63), (1 << 63) - 1), st.floats(allow_nan=False, allow_infinity=False), st.booleans()
    )
    return st.recursive(
        plain,
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
        max_leaves=10,
    )


def paths_of(value: object, path: KeyPath = ()) -> set[KeyPath]:
    inner: list[tuple[str | int, object]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    return set[KeyPath]().union({path} if path else set(), *(paths_of(each, (*path, key)) for key, each in inner))


@given(st.dictionaries(KEYS, toml_values(), max_size=5), LAYOUTS)
@settings(max_examples=150, deadline=None)
def test_every_key_and_item_of_any_document_has_its_position(tables: dict[str, Toml], layout: random.Random) -> None:
    text = toml_text(tables, layout)
    assert tomllib.loads(text) == tables
    positions = find_positions(text, "file")
    assert set(positions) == paths_of(tables)
    lines = text.split("\n")
    for path, span in positions.items():
        key = path[-1]
        if isinstance(key, str) and key.isascii() and key.isalnum():
            assert lines[span.key.line - 1][span.key.column - 1 :].lstrip("\"'").startswith(key)
        value: object = tables
        for step in path:
            assert isinstance(value, dict | list)
            value = value[step]  # type: ignore[index]
        if isinstance(value, str | list):
            there = lines[span.value.line - 1][span.value.column - 1 :]
            assert there[0] in ("\"'" if isinstance(value, str) else "[{") or span.key == span.value


OPTIONS: st.SearchStrategy[Toml] = st.one_of(
    TEXTS,
    st.booleans(),
    st.integers(-9, 9),
    st.floats(0, 1),
    st.lists(cast("st.SearchStrategy[Toml]", TEXTS), max_size=2),
)


def specs(type_: FieldType) -> st.SearchStrategy[Toml]:
    """What a file may hold in a type_, whatever it means."""
    match type_:
        case Record():
            required = {name: specs(key.type) for name, key in type_.keys.items() if key.is_required}
            optional = {name: specs(key.type) for name, key in type_.keys.items() if not key.is_required}
            whole: st.SearchStrategy[Toml] = st.fixed_dictionaries(required, optional=optional).map(dict)
            ways = [whole, st.sampled_from(list(type_.keywords))] if type_.keywords else [whole]
            return st.one_of(*ways, specs(type_.keys[type_.text_key].type)) if type_.text_key else st.one_of(*ways)
        case TableOf():
            return st.dictionaries(TEXTS, specs(type_.each), max_size=2).map(dict)
        case ListOf():
            return st.lists(specs(type_.each), max_size=2).map(list)
        case Choice():
            return st.sampled_from(type_.choices)
        case Scalar(python_type=kind):
            if kind is str:
                return TEXTS
            if kind is bool:
                return st.booleans()
            return st.integers(0, 1 << 40) if kind is int else st.floats(0, 1e9)
        case PluginOption():
            return OPTIONS


def tables_of(value: object, type_: FieldType) -> Toml:
    """Write a value of a spec as tables, all of it and in no short type_, but where only a word will do."""
    match type_:
        case Record():
            for word, whole in type_.keywords.items():
                if value == whole:
                    return word
            pairs = {key.name: (key.type, getattr(value, key.attribute)) for key in type_.keys.values()}
            return {name: tables_of(each, inner) for name, (inner, each) in pairs.items() if each is not None}
        case TableOf():
            assert isinstance(value, dict)
            return {name: tables_of(each, type_.each) for name, each in value.items()}
        case ListOf():
            assert isinstance(value, tuple)
            return [tables_of(each, type_.each) for each in value]
        case _:
            if isinstance(value, tuple):
                return list(value)
            assert isinstance(value, str | int | float)
            return value


ROOT = record_of(TopologySpec)


@given(specs(ROOT), LAYOUTS)
@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
def test_a_spec_written_as_toml_and_read_again_is_the_same(tables: Toml, layout: random.Random) -> None:
    assert isinstance(tables, dict)
    spec, problems = decode(tables, {})
    assert problems == []
    text = toml_text(tables_of(spec, ROOT), layout)  # type: ignore[arg-type]
    again, problems = decode(tomllib.loads(text), find_positions(text, "file"))
    assert problems == []
    assert again == spec


def problems_of(text: str) -> tuple[Problem, ...]:
    try:
        parse_topology(text)
    except SpecError as error:
        return error.problems
    return ()


FRAGMENTS = ["[", "]", "{", "}", "=", ".", ",", '"', "'", '"""', "#", "\n", "\\", "@", "0", "nan", "[[assert]]\n", "= 1\n", "é", "\0", "\r", "[" * 40, "1" * 5000, "a.b.c = {}\n", "1979-05-27"]  # fmt: skip
MUTATIONS = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 30), st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=3))),
    min_size=1,
    max_size=4,
)


@given(MUTATIONS)
@settings(max_examples=250, deadline=None)
def test_a_good_file_damaged_at_random_raises_nothing_but_a_spec_error(
    mutations: list[tuple[float, int, str]],
) -> None:
    text = GOOD
    for where, cut, put in mutations:
        at = int(where * len(text))
        text = text[:at] + put + text[at + cut :]
    for problem in problems_of(text):
        assert problem.position is not None
        assert "\n" not in str(problem)


WORDS = [
    "nodes",
    "alice",
    "bob",
    "to",
    "trust",
    "via",
    "everyone",
    "tcp:127.0.0.1:4000",
    "@bob",
    "[]",
    "{}",
    "1",
    "true",
]


@given(st.lists(st.tuples(st.integers(0, 200), st.sampled_from(WORDS)), min_size=1, max_size=5))
@settings(max_examples=150, deadline=None)
def test_a_good_file_with_words_exchanged_raises_nothing_but_a_spec_error(changes: list[tuple[int, str]]) -> None:
    parts = GOOD.split(" ")
    for at, word in changes:
        parts[at % len(parts)] = word
    assert all(problem.position is not None for problem in problems_of(" ".join(parts)))


def test_deep_nesting_is_a_problem() -> None:
    for text in ("a = " + "[" * 20_000, "a = " + "[" * 5_000 + "]" * 5_000, "a = " + "{b = " * 20_000):
        assert len(problems_of(text)) == 1
