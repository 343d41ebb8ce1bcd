"""Tests of fault_lab.linear."""
