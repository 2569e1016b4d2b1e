"""The package's version, which files and records contain."""

__version__ = "0.1.0"
