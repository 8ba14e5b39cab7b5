"""`trionode check`: prove from its files what each part of a topology could see and do."""

import json
from pathlib import Path

import click

from trionode.cli.terminal import print_out, printable, say
from trionode.errors import LocalError
from trionode.topology.check.checks import check_installation
from trionode.topology.load.json_schema import json_schema
from trionode.topology.load.loader import read_topology
from trionode.verify.findings import missing_here
from trionode.verify.render import as_json, render
from trionode.verify.report import Report, verify


@click.command()
@click.argument("files", type=click.Path(path_type=Path, dir_okay=False), nargs=-1, metavar="FILE...")
@click.option("--strict", is_flag=True, help="Fail for warnings, too.")
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.option("--schema", is_flag=True, help="Print the JSON Schema of topology files, for editors, and check nothing.")
@click.pass_context
def check(context: click.Context, *, files: tuple[Path, ...], strict: bool, is_json: bool, schema: bool) -> None:
    """Prove from FILEs what each part of a topology could see and do. Nothing is started.

    For each flow the command prints a table of the hops in order: what each hop sees of the payload, what it could do,
    and which addresses it sees. The findings follow, with the plugins and modules that are missing on this machine. The
    assertions come last. A violated assertion shows the path that violates it.

    Exit codes: 0 every assertion holds and no finding is an error, 1 otherwise, or if the files have problems, 2 wrong
    options.
    """
    try:
        if schema:
            print_out(json.dumps(json_schema(), indent=2))
            return
        if not files:
            raise click.UsageError("give the files that describe the topology")
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
    missing = check_installation(reading.spec, positions=reading.positions, folders=folders)
    return verify(reading.spec).with_findings(missing_here(missing))
