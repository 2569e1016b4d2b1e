"""The page that searches an index, and its API: what `proxynca serve` serves."""
