"""Example-dependent convolution kernels (CondConv) for any convolutional network."""

__version__ = "0.1.0"
