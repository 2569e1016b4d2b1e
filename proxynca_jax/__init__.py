"""Zero-shot image retrieval with proxies (ProxyNCA) in JAX and Flax."""

__version__ = "0.1.0"
