"""The face of fpstated: the command line, and the stable names `fpstated.client` and `fpstated.testing`."""

from __future__ import annotations

from fpstated._version import __version__

__all__ = ["__version__"]
