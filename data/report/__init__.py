"""The report of a data set: image statistics, duplicates, an HTML page."""
