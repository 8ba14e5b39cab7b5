"""The command `trionode` and its subcommands."""

import logging
import sys

import click

from trionode.cli.commands.alice import alice
from trionode.cli.commands.bob import bob
from trionode.cli.commands.check import check
from trionode.cli.commands.demo import demo
from trionode.cli.commands.graph import graph
from trionode.cli.commands.hub import hub
from trionode.cli.commands.identity import identity
from trionode.cli.commands.inlet import inlet
from trionode.cli.commands.outlet import outlet
from trionode.cli.commands.relay import relay
from trionode.cli.commands.run import run
from trionode.cli.commands.simulate import simulate


@click.group()
@click.option("-v", "--verbose", is_flag=True, help="Log more on standard error.")
@click.version_option(package_name="trionode")
def main(*, verbose: bool) -> None:
    """Let two programs talk end to end encrypted, over any number of hops.

    Begin with `trionode demo`. Or start three commands in three terminals: `trionode hub`, `trionode bob` and `trionode
    alice`. Alice asks for the two addresses that Bob prints.

    Exit codes: 0 success, 1 failure (standard error says why), 2 wrong options, 129, 130 and 143 stopped by a signal.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO if verbose else logging.WARNING, format="%(message)s")


for _command in (demo, hub, bob, alice, inlet, outlet, relay, run, check, graph, simulate, identity):
    main.add_command(_command)
