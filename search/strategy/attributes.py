"""What a study stores of the search besides parameters and values, by name."""

# User attributes of a trial.
SUGGESTED_ATTR = "suggested_because"
ENDED_ATTR = "ended_because"
BEST_EPOCH_ATTR = "best_epoch"
PAUSED_ATTR = "paused_at"  # the epoch after which a paused trial resumes; None once it has resumed
BROKEN_ATTR = "broken"  # a value was not finite
SKIPS_RUNGS_ATTR = "straight"  # it trains to its end, unless it falls below the median
COST_ATTR = "cost"  # inference cost
SECONDS_ATTR = "epoch_seconds"  # mean time of its epochs, stored again when it has changed by MIN_CHANGE
START_ATTR = "start_seconds"  # the time from handing it to a worker to its first epoch
LAST_EPOCH_ATTR = "last_epoch"  # if it ends earlier than its configuration says
PRIOR_ATTR = "prior"  # the earlier sweep that it belongs to
# User attributes of the study.
EARLIER_ATTR = "earlier"  # sweeps whose values do not count, as a prior
HYPERPARAMETERS_ATTR = "learned"  # of the planner's models
