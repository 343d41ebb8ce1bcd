"""Live guests under load, processes killed at random moments, and a count of what was lost: nothing.

    python -m tests.crash --kills N [--seed S] [--faults | --full]
    python -m tests.crash --damages N [--seed S]

    campaign   kills and restarts; after each one the audit
    child      a process and the pipe it reports through; what it said is the parent's, whatever becomes of it
    record     what one client was told, and what it has asked for
    counting   clients that know of each event what must come of it (model)
    guests     scripted guests, and real ones under /dev/kvm
    twin       the journal carried out again from record 0, beside the host
    audit      the records against the twin
    disk       files that fail on purpose, and forget at a power cut what was never synced; faults uses them
    full       a disk that is full, and has room again
    damage     what is left of a dead host, damaged at random places

docs/reliability.md has the figures.
"""
