"""`trionode graph`: a picture of a topology, with what each hop can see."""

from pathlib import Path

import click

from trionode.cli.terminal import print_out, printable, say
from trionode.errors import LocalError
from trionode.topology.load.loader import load_topology
from trionode.verify.graph import as_mermaid, as_svg, as_text
from trionode.verify.report import verify

_FORMATS = {".svg": as_svg, ".mmd": as_mermaid, ".mermaid": as_mermaid}


@click.command()
@click.argument("files", type=click.Path(path_type=Path, dir_okay=False), nargs=-1, required=True, metavar="FILE...")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the picture to a file: .svg, or .mmd for Mermaid.",
)
@click.pass_context
def graph(context: click.Context, *, files: tuple[Path, ...], output: Path | None) -> None:
    """Draw the topology of FILEs, with what each hop can see of its flows: as text, or as a picture in a file."""
    if output is not None and output.suffix not in _FORMATS:
        raise click.BadParameter(f"expected a name that ends in {' or '.join(_FORMATS)}; this is {output.name!r}")
    try:
        report = verify(load_topology(*files, nodes=()))
        if output is None:
            for line in as_text(report):
                print_out(printable(line))
            return
    except LocalError as error:
        for line in str(error).splitlines():
            say(printable(line))
        context.exit(1)
    try:
        output.write_text(_FORMATS[output.suffix](report), encoding="utf-8")
    except OSError as error:
        say(f"{output} can't be written: {error.strerror}")
        context.exit(1)
