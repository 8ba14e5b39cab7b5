"""Drawings of topologies: well-formed, and with the view of each hop."""

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner

from tests.support.stages import STAGES
from trionode.cli import main
from trionode.topology.load.loader import parse_topology
from trionode.verify.graph import as_mermaid, as_svg, as_text, lay_out
from trionode.verify.report import Report, verify

HUB = """
[nodes.alice.secure_channels.bob]
to = ["tcp:127.0.0.1:4000", "forward_to_bob", "api"]
trust = { nodes = ["bob"] }
[nodes.hub]
listen = "tcp:127.0.0.1:4000"
relay_service = {}
[nodes.bob]
workers.echoer = "echoer"
relays.bob = { via = ["tcp:127.0.0.1:4000"] }
secure_channel_listeners.api = { trust = { nodes = ["alice"] } }
"""


def report(text: str) -> Report:
    return verify(parse_topology(text, nodes=()))


def test_columns_follow_the_flows() -> None:
    assert [[box.name for box in column] for column in lay_out(report(HUB)).columns] == [["alice"], ["hub"], ["bob"]]


def test_text_shows_what_each_box_offers_and_sees() -> None:
    lines = list(as_text(report(HUB)))
    assert "● hub" in lines
    assert "│   sees alice → bob/echoer by @bob: ciphertext; can drop" in lines
    assert "├── tcp ──▶ hub" in lines
    assert lines[-1] == "secure channel @bob: alice ⇄ bob"


@pytest.mark.parametrize("stage", STAGES)
def test_svg_is_well_formed_and_names_all_nodes(stage: str) -> None:
    verified = report(STAGES[stage])
    root = ET.fromstring(as_svg(verified))
    texts = {each.text for each in root.iter("{http://www.w3.org/2000/svg}text")}
    assert set(verified.analysis.network.nodes) <= texts


def test_boxes_of_an_svg_do_not_overlap() -> None:
    root = ET.fromstring(as_svg(report(STAGES["chain"])))
    names = ("x", "y", "width", "height")
    boxes = [
        tuple(float(each.get(name, 0)) for name in names)
        for each in root.iter("{http://www.w3.org/2000/svg}rect")
        if each.get("x") and float(each.get("width", 0)) > 50
    ]
    assert len(boxes) == len(report(STAGES["chain"]).analysis.network.nodes)
    for number, (x, y, width, height) in enumerate(boxes):
        assert x >= 0
        assert y >= 0
        assert x + width <= float(root.get("width", 0))
        assert y + height <= float(root.get("height", 0))
        for x2, y2, width2, height2 in boxes[:number]:
            assert x + width <= x2 or x2 + width2 <= x or y + height <= y2 or y2 + height2 <= y


def test_names_are_escaped_in_drawings() -> None:
    text = '[nodes.a]\nlisten = "loopback:<b>&\\"x"\n[nodes.a.workers]\n"<script>\\"" = "echoer"'
    verified = report(text)
    assert "<script>" not in as_svg(verified)
    assert "<script>" not in as_mermaid(verified)
    ET.fromstring(as_svg(verified))


def test_mermaid_has_every_node_link_and_channel() -> None:
    mermaid = as_mermaid(report(HUB))
    assert mermaid.startswith("flowchart LR\n")
    assert '"<b>hub</b>' in mermaid
    assert '-->|"tcp"|' in mermaid
    assert '<-. "@bob" .->' in mermaid
    assert ":::is_carries" in mermaid


def test_command_chooses_the_format_by_the_file_name(tmp_path: Path) -> None:
    file = tmp_path / "topology.toml"
    file.write_text(HUB, encoding="utf-8")
    run = CliRunner().invoke
    assert "● hub" in run(main, ["graph", str(file)]).output
    for name, begin in (("a.svg", "<svg"), ("a.mmd", "flowchart")):
        assert run(main, ["graph", str(file), "-o", str(tmp_path / name)]).exit_code == 0
        assert (tmp_path / name).read_text(encoding="utf-8").startswith(begin)
    result = run(main, ["graph", str(file), "-o", str(tmp_path / "a.png")])
    assert result.exit_code == 2
    assert "a name that ends in .svg or .mmd" in result.output
