"""What experts cost: conditional layers and networks timed beside their static twins, as `condconv bench` prints it."""
