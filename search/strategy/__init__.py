"""Strategies: what to try next, and what to stop. Optuna only; no Ray."""

from search.strategy.open import open_strategy
from search.strategy.optuna_strategy import OptunaStrategy
from search.strategy.seam import Decision, Outcome, Record, Strategy, Suggestion, Verdict

__all__ = [
    "Decision",
    "OptunaStrategy",
    "Outcome",
    "Record",
    "Strategy",
    "Suggestion",
    "Verdict",
    "open_strategy",
]
