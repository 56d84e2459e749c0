"""The version of this package, in one place. Layer 0."""

__version__ = "0.1.0"
