"""Generated from protos/fpstate/fault/v1 by tools/gen_protos.py; do not edit."""
