"""The process that owns the FPU core: the KVM side, the machine, and the services around it."""
