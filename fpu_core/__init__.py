"""The host FPU problem: an executable model of the kernel's FPU core. Pure and synchronous."""
