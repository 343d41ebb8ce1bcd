"""Campaigns: blocks of seeds on executors."""
