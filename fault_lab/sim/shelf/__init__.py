"""The checker's books of one subject each: what a host was asked and said, kept beside what its machine keeps."""
