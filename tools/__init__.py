"""Tools of the tree itself: what `make` and the tests call, and no user imports."""
