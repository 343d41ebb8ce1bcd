"""The mutants, by the part of the kernel the bug was in."""
