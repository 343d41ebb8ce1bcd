"""Generated from protos/fpstate/v1 by tools/gen_protos.py; do not edit."""
