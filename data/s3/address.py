"""Addresses of buckets: s3://BUCKET and s3://BUCKET/PREFIX."""

import re
from dataclasses import dataclass

from binsweep.data.errors import UserError

SCHEME = "s3://"


@dataclass(frozen=True, slots=True)
class BucketAddress:
    """A bucket and the prefix that counts as its root: "" or text that ends with a slash."""

    bucket: str
    prefix: str

    @property
    def uri(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.prefix}".rstrip("/")


def parse_address(uri: str) -> BucketAddress:
    """Parse s3://BUCKET or s3://BUCKET/PREFIX; raises UserError for anything else."""
    bucket, _, prefix = uri.removeprefix(SCHEME).partition("/")
    valid = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]", bucket)
    if not uri.startswith(SCHEME) or not valid:
        raise UserError(f"not the address of a bucket: {uri}", "s3://BUCKET or s3://BUCKET/PREFIX")
    prefix = prefix.strip("/")
    return BucketAddress(bucket, f"{prefix}/" if prefix else "")
