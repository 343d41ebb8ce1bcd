"""``fpstated ctl`` against a host that runs as a process of its own."""
