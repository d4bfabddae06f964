"""Search strategies: what to try next, and what to stop or pause. Optuna only; no Ray."""
