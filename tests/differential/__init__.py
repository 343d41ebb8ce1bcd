"""Our core against what real kernels and processors answered, one module a kind of file."""
