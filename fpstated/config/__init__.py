"""Configuration of host and controller: one table each, from which flags, variables, file keys and docs are made."""
