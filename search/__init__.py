"""What is tried next? The sweep specification, strategies, runners and the command line."""
