"""The one package that imports kafka-python: its threaded clients behind a small typed interface for Trio.

kafka-python's clients block and keep threads of their own, so each lives in a lane: a thread with a queue of jobs. Batches cross
between Trio and the lanes, never single records; what comes back is drained in the Trio thread once a burst.
"""

import warnings

with warnings.catch_warnings():
    # Loading kafka-python 3.0.12 warns of its own use of importlib.resources, which a program that makes warnings errors should survive.
    warnings.simplefilter("ignore", DeprecationWarning)
    from trionode_kafka.client.connection import Bridge, close_bridge, connect_bridge, open_bridge, parse_addresses
    from trionode_kafka.client.errors import AwayError, RefusedByBrokerError
    from trionode_kafka.client.records import Arrive, Confirm, Fetched, Outgoing, Page, Topic
    from trionode_kafka.client.worker_thread import Slot

__all__ = [
    "Arrive",
    "AwayError",
    "Bridge",
    "Confirm",
    "Fetched",
    "Outgoing",
    "Page",
    "RefusedByBrokerError",
    "Slot",
    "Topic",
    "close_bridge",
    "connect_bridge",
    "open_bridge",
    "parse_addresses",
]
