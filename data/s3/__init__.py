"""Buckets: listing, downloading and uploading bins, and reading a bucket as a source."""
