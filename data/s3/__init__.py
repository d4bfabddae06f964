"""S3 buckets: listing, downloading and uploading photos, and reading a bucket as a source."""
