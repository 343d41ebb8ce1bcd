"""The parsers of texts, and of what a journal holds, under hostile input: ``python -m tests.fuzz_text --seconds N``.

The property is one: whatever the input, a parser answers, or raises the error that it documents, which says what was
expected; never anything else, and never after ten seconds. ``targets.py`` is the list.
"""
