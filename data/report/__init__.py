"""What a data set looks like: statistics of its images, duplicates and its page."""
