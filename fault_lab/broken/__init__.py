"""The founding mail's design with one step wrong: what the lab is tried on, and what the tutorial begins with.

    fpstated sim --broken xfd-first run PLAN           a simulated world that is broken
    fpstated live --broken xfd-first run PLAN          hosts of a live run that are
    python -m fault_lab.broken xfd-first host ...      one live host that is

Nothing of this is in a host unless one of these puts it there.
"""
