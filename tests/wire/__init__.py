"""The wire of live processes, broken on purpose: the proxy, the interceptors, and the points they ask."""
