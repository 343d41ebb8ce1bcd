"""The KVM layer on its own: validity rules, intercepts, and the life of a vCPU."""
