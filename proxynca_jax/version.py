"""The package's version, which files and records contain."""

__version__ = "0.2.0"
