"""What do we learn from? Bins and their labels: reading, splitting, decoding, banks."""
