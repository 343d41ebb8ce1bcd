"""The same plans on live processes: faults that are asked outside of the host, and a wire that can be broken."""
