"""`trionode check`: what everybody in a topology could see and do, from its files alone."""

import json
from pathlib import Path

import click

from trionode.cli.terminal import printable, say
from trionode.topology.problems import SpecError
from trionode.topology.reading import load_topology
from trionode.topology.schema import json_schema
from trionode.topology.telling import as_json, tell
from trionode.topology.verify import verify


@click.command()
@click.argument("files", type=click.Path(path_type=Path, dir_okay=False), nargs=-1, metavar="FILE...")
@click.option(
    "--strict", is_flag=True, help="Fail for errors and warnings too, and not only for assertions that don't hold."
)
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.option("--schema", is_flag=True, help="Print the JSON Schema of topology files, for editors, and check nothing.")
@click.pass_context
def check(context: click.Context, *, files: tuple[Path, ...], strict: bool, is_json: bool, schema: bool) -> None:
    """Prove what everybody in a topology could see and do, from its FILEs alone: nothing is started.

    For each flow there is a table: who carries it, in order, what he sees of the payload, what he could do, and which addresses he sees; then
    what is dubious, then whether the assertions hold, with the way that violates each that does not.

    Exit codes: 0 every assertion holds, 1 one does not or the files have problems, 2 the command was not understood.
    """
    if schema:
        click.echo(json.dumps(json_schema(), indent=2))
        return
    if not files:
        raise click.UsageError("name the files that describe the topology")
    try:
        report = verify(load_topology(*files, only=()))
    except SpecError as error:
        for problem in error.problems:
            say(printable(str(problem)))
        context.exit(1)
    if is_json:
        click.echo(json.dumps(as_json(report), indent=2))
    else:
        for line in tell(report):
            click.echo(printable(line))
    dubious = any(finding.severity != "note" for finding in report.findings)
    if not report.holds or (strict and dubious):
        context.exit(1)
