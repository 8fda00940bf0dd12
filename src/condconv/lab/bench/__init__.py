"""What experts cost: conditional layers and networks timed in turn with their static twins, for `condconv bench`."""
