"""Plans on real processes: `fpstated live run`, what it leaves, and what it is compared with."""
