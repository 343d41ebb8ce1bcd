"""Durable commands: every command with its outcome is on the disk before anybody hears of it.

    store       the directory: one lock, one SQLite file, its versions
    mark        which record was committed last, outside of that file
    record      one command with its outcome as bytes, chained to the record before
    batch, outcome   the binary forms of what is frequent; JSON for the rest
    writer      the one thread that commits
    journal     what a host agent holds: append on its loop, wait until it is durable
    recovery    from a directory back to the identical machine

docs/storage.md is the user's view of all this.
"""
