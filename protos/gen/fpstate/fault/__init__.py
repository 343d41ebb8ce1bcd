"""Generated from protos/fpstate/fault by tools/gen_protos.py; do not edit."""
