"""A sweep for its reader: page, charts, advice and status."""
