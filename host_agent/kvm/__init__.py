"""The KVM problem: what is intercepted of XCR0, XFD and #NM, and the life cycle of a vCPU. Pure, like fpu_core."""
