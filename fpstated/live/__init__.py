"""The commands of ``fpstated live``."""
