"""All mutations, by the part of the code that they change."""

from tests.mutations.bounds import BOUNDS
from tests.mutations.delivery import DELIVERY
from tests.mutations.handshakes import HANDSHAKES
from tests.mutations.identities import IDENTITIES
from tests.mutations.routing import ROUTING
from tests.mutations.sessions import SESSIONS
from tests.mutations.streams import STREAMS
from tests.mutations.surfaces import SURFACES

MUTATIONS = (*SESSIONS, *DELIVERY, *STREAMS, *HANDSHAKES, *IDENTITIES, *BOUNDS, *ROUTING, *SURFACES)
