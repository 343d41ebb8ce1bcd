"""Generated from protos/fpstate by tools/gen_protos.py; do not edit."""
