"""Trials on Ray: workers, groups of workers, files for other nodes, submitted jobs. Only here is Ray imported."""
