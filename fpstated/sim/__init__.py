"""The commands of ``fpstated sim``."""
