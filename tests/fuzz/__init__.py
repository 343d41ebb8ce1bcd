"""Hostile input against a live host: ``python -m tests.fuzz --seconds N``; docs/reliability.md says what is proved.

tour.py         a valid call of every method, as texts: what mutations begin with
vocabulary.py   what the host has said: names, epochs, numbers, to be said back at the right and the wrong place
messages.py     messages by their descriptors: built, and one field of them changed
wire_bytes.py   bytes: flipped, cut, doubled, spliced, nested
inputs.py       one input: who sends what under which method's path, and how it ends
sender.py       sends it, and says what came back, and whether that is a crash
block.py        a tour, some hundred inputs from several lanes at once, and the checks behind them
failure.py      what a failure leaves, how it is repeated and made smaller
"""
