"""What is written to disk and read back: paths, whole files, and the format of checkpoints."""
