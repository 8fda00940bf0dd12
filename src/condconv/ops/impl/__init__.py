"""One file an implementation; they do not import one another."""
