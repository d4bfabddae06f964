"""Photos of bins and their labels: sources, splits, decoding, banks, reports."""
