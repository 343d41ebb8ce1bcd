"""Live processes that lose each other: ``python -m tests.partition --rounds N``; docs/reliability.md says what holds.

network.py    namespaces and a router between them that drops one way or both; or proxies where there are none
guest.py      a guest agent as a process, whose registers count what it was acknowledged
process.py    a process whose lines are read, and that can be stopped and killed
troubles.py   what happens in a round
run.py        the processes, the rounds, the verdict
"""
