"""`python -m trionode` is the command `trionode`."""

from trionode.cli import main

main(prog_name="trionode")
