"""Trials on Ray: workers, worker groups, file transfer, submitted jobs. The only package that imports Ray."""
