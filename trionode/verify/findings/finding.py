"""The kinds of findings, and the value of one finding."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import attrs

from trionode.topology.errors import KeyPath, Problem, dotted_keys

#: error: it cannot work as written. warning: others can see, send or cause something, or something is missing. note:
#: worth knowing.
Severity = Literal["error", "warning", "note"]
_SEVERITIES: Sequence[Severity] = ("error", "warning", "note")


@attrs.frozen
class Finding:
    """One thing that is wrong or risky: where the topology declares it, why, and what to do."""

    kind: str
    severity: Severity
    where: KeyPath
    text: str
    advice: str
    #: The path that shows it, hop by hop.
    trace: tuple[str, ...] = ()

    @property
    def rank(self) -> tuple[int, str, str]:
        """The sort key of findings: most serious first."""
        return _SEVERITIES.index(self.severity), self.kind, dotted_keys(self.where)

    def __str__(self) -> str:
        return f"{self.severity}: {dotted_keys(self.where)}: {self.text}. {self.advice}"


@attrs.frozen
class Kind:
    """A kind of finding, with its severity and the advice that goes with it."""

    name: str
    severity: Severity
    advice: str

    def at(self, where: KeyPath, text: str, trace: tuple[str, ...] = ()) -> Finding:
        """Return a finding of this kind."""
        return Finding(self.name, self.severity, where, text, self.advice, trace)


# What cannot work
LOOP = Kind("loop", "error", "Let the routes, and what workers pass on, end somewhere")
NO_ROUTE = Kind("no route", "error", "Change the route, or what the address admits")
LEAVES = Kind("no route", "warning", "Describe the node that listens there, with external = true")
NO_RETURN_ROUTE = Kind(
    "no return route",
    "error",
    "Let the nodes in between forward, use a relay, or write answered = false if no answer is wanted",
)
CANNOT_OPEN = Kind("cannot open", "error", "Change its route, or what is admitted or trusted there")
LIMIT_REACHED = Kind("cannot open", "error", "Raise the limit, or let the topology need less")
UNKNOWN_ADDRESS = Kind(
    "unknown address",
    "warning",
    "Describe the node that listens there, with external = true if others run it",
)
AMBIGUOUS_ADDRESS = Kind("ambiguous address", "warning", "Let them listen on the addresses that others connect to")
NAME_CLAIMED = Kind("claimed twice", "warning", "Choose another name")
STREAM_CLAIMED = Kind("claimed twice", "warning", "Name its owner in owners, or give it a name from unique()")
POSITION_CLAIMED = Kind("claimed twice", "warning", "Give each reader its own client_id")
MISSING_HERE = Kind(
    "missing here",
    "warning",
    "Correct it, or check the file where that node runs; write external = true if others run the node",
)

# What others can see, send and cause
PLAINTEXT = Kind("plaintext", "warning", "Send it through a secure channel with the node that should read it")
TRUSTING_LISTENER = Kind(
    "trusts everyone", "warning", "Name the peers, by nodes or identifiers, or let the addresses behind it name them"
)
TRUSTING_CHANNEL = Kind("trusts everyone", "warning", "Name the node or the identifier that you expect")
REACHABLE = Kind("reachable without channel", "warning", 'Write allow = "channels", or name the peers')
OPEN_SERVICE = Kind("open service", "warning", "Admit channels only, and add a listener that trusts the clients")
SERVICE_BEHIND_OPEN_LISTENER = Kind(
    "open service", "note", "Let the listener trust the clients by name, or name them in allow"
)
OPEN_LISTENER = Kind("open listener", "note", "Listen on 127.0.0.1 if all clients are on this machine")
RELAY_FORWARDS = Kind("forwards unauthenticated", "note", "Let the services there admit secure channels only")
WORKER_FORWARDS = Kind("forwards unauthenticated", "warning", 'Write allow = "channels", or name the peers')
#: By the table of the spec that declares what connects.
DIALS = {
    "links": Kind("unauthenticated dial", "warning", 'Dial at the start, or do not forward: dial = "at_start"'),
    "outlets": Kind(
        "unauthenticated dial", "warning", "Name the peers that may use it, and let listeners trust no others"
    ),
    "inlets": Kind(
        "unauthenticated dial", "warning", "Listen on 127.0.0.1 if only programs of this machine should use it"
    ),
}

# Links between forwarding nodes
RING = Kind("ring", "warning", "Write drop_when_full = true, at both ends")
NEEDLESS_DROPS = Kind("drop_when_full", "note", "Leave drop_when_full out")


def missing_here(problems: Iterable[Problem]) -> Iterator[Finding]:
    """Yield a warning for each problem of `check_here`: what this machine lacks to run the nodes."""
    return (MISSING_HERE.at(problem.path, problem.text) for problem in problems)
