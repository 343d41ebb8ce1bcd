"""Between the wire's messages and the machine's commands and records: the only place that knows both.

One module per noun. Functions that read a request raise ``Failure`` with the path of the field; they change nothing.
"""
