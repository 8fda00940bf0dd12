"""One file per implementation; they do not import one another."""
