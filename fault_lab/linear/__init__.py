"""Whether what everybody heard of a vCPU could have happened one after the other: ok, violation or unknown."""
