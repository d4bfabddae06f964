"""Strategies: what to try next, and what to stop. Optuna only; no Ray."""
