"""The tutorial, typed."""
