"""The services over a real unix socket."""
