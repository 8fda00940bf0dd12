"""The lab reads images, trains, saves and compares networks. The library does not use it."""
