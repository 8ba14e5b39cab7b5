"""TCP portals: a port here whose connections come out at a TCP service elsewhere, over any route (spec §13.3)."""

from trionode.portal.connection import PortalLimits
from trionode.portal.inlet import Inlet
from trionode.portal.outlet import Outlet

__all__ = ["Inlet", "Outlet", "PortalLimits"]
