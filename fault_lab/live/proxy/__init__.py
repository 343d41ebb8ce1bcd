"""A proxy that breaks the connection between two nodes on purpose."""

from fault_lab.live.proxy.proxy import Proxy, Stats, WayStats
from fault_lab.live.proxy.trouble import Trouble

__all__ = ["Proxy", "Stats", "Trouble", "WayStats"]
