"""The traps of gRPC in Python: what each does on bare grpc.aio, and what of ours keeps out of it: docs/traps.md."""
