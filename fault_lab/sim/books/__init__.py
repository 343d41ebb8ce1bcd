"""The checker's own books: what a host was asked and said, kept beside what its machine keeps, and compared with it."""
