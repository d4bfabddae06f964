"""The objective as it is, in a sweep."""

from objective import objective

from binsweep import from_optuna

train = from_optuna(objective)
