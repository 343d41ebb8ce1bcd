"""The gRPC shells around HostMachine: translate, submit, await, translate."""
