"""What host, guests and controllers share about a connection: mutual TLS, and the trace that a call belongs to."""
