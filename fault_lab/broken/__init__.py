"""The founding mail's design with its steps in the wrong order: what the lab is tried on, and the tutorial begins with.

    fpstated sim --broken xfd-first search PLAN        a simulated world that is broken
    python -m fault_lab.broken xfd-first host ...      a live host that is

Nothing of this is in a host unless one of these two commands puts it there.
"""
