"""What fault-injection tests are written with."""
