"""What learns, and how well? Backbones, heads, the training loop and its metrics."""
