"""The sweep specification: its YAML, its schema and its search space."""
