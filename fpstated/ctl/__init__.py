"""``fpstated ctl``: a host by hand. Tables for people, protobuf's JSON for programs, one line for what went wrong."""
