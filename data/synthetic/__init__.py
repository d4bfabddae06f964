"""Rendered bins with exact labels, for the quick start and the tests."""
