"""For your tests: contract suites of plugins, networks with faults, topologies, and a real Kafka broker.

The fixtures of the pytest plugin return most of these; docs/testing.md describes them. `transport` and `stream_store`
are modules: each has `CHECKS`, one function a promise, for a parametrized test.
"""

from trionode.testing import stream_store, transport
from trionode.testing.crashable import Crashable
from trionode.testing.faults import OVERTAKEN_WITHIN, Event, Fate, Faults, Frame, Rule
from trionode.testing.kafka import KafkaBroker, NoKafkaError, SecureListeners, run_kafka
from trionode.testing.network import FaultyNetwork, FaultyTransport
from trionode.testing.simulation.mix import STANDARD_MIX, FaultMix
from trionode.testing.simulation.outcome import Outcome
from trionode.testing.simulation.simulation import Simulation
from trionode.testing.stream_store import check_stream_store
from trionode.testing.topologies import Topologies
from trionode.testing.transport import check_transport

__all__ = [
    "OVERTAKEN_WITHIN",
    "STANDARD_MIX",
    "Crashable",
    "Event",
    "Fate",
    "FaultMix",
    "Faults",
    "FaultyNetwork",
    "FaultyTransport",
    "Frame",
    "KafkaBroker",
    "NoKafkaError",
    "Outcome",
    "Rule",
    "SecureListeners",
    "Simulation",
    "Topologies",
    "check_stream_store",
    "check_transport",
    "run_kafka",
    "stream_store",
    "transport",
]
