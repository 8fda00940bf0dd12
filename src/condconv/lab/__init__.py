"""The lab: what reads images, trains networks, keeps them, and compares them. The library does without it."""
