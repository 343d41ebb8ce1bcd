"""The one source of the version: the build back end reads it here, and so do the command and the package."""

from __future__ import annotations

__version__ = "0.1.0"
