"""Strategies: what to try next, and what to stop. Optuna only; no Ray."""

from binsweep.search.strategy.base import Decision, Outcome, Record, Strategy, Suggestion, Verdict
from binsweep.search.strategy.factory import open_strategy
from binsweep.search.strategy.optuna_strategy import OptunaStrategy

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
