"""`trionode check`: what everybody in a topology could see and do, from its files alone."""

import json
from pathlib import Path

import click

from trionode.cli.terminal import print_out, printable, say
from trionode.errors import LocalError
from trionode.topology.check.checks import check_here
from trionode.topology.load.json_schema import json_schema
from trionode.topology.load.loader import read_topology
from trionode.verify.findings import missing_here
from trionode.verify.render import as_json, render
from trionode.verify.report import Report, verify


@click.command()
@click.argument("files", type=click.Path(path_type=Path, dir_okay=False), nargs=-1, metavar="FILE...")
@click.option(
    "--strict", is_flag=True, help="Fail for warnings too, and not only for errors and assertions that don't hold."
)
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.option("--schema", is_flag=True, help="Print the JSON Schema of topology files, for editors, and check nothing.")
@click.pass_context
def check(context: click.Context, *, files: tuple[Path, ...], strict: bool, is_json: bool, schema: bool) -> None:
    """Prove what everybody in a topology could see and do, from its FILEs alone: nothing is started.

    For each flow there is a table: who carries it, in order, what he sees of the payload, what he could do, and which addresses he sees; then
    what is dubious, with whatever the nodes need that is not installed here, then whether the assertions hold, with the way that violates each that does not.

    Exit codes: 0 every assertion holds and nothing is an error, 1 one does not or something is, the files have problems or the output can't be written,
    2 the command was not understood.
    """
    try:
        if schema:
            print_out(json.dumps(json_schema(), indent=2))
            return
        if not files:
            raise click.UsageError("name the files that describe the topology")
        report = _report(files)
        if is_json:
            print_out(json.dumps(as_json(report), indent=2))
        else:
            for line in render(report):
                print_out(printable(line))
    except LocalError as error:
        for line in str(error).splitlines():
            say(printable(line))
        context.exit(1)
    failing = {"error", "warning"} if strict else {"error"}
    if not report.holds or any(finding.severity in failing for finding in report.findings):
        context.exit(1)


def _report(files: tuple[Path, ...]) -> Report:
    reading = read_topology(*files, nodes=())
    folders = [str(file.resolve().parent) for file in files]
    missing = check_here(reading.spec, positions=reading.positions, folders=folders)
    return verify(reading.spec).with_findings(missing_here(missing))
