"""The trials of a sweep: which runs when, with which resources."""
