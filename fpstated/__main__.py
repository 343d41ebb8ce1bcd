"""``python -m fpstated``: the command, where its script is not on PATH."""

from fpstated.cli import main

main()
