"""The page that explains a run, or compares two: one HTML file that needs no network."""
