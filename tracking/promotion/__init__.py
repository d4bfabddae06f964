"""The promotion of a candidate to champion: evidence, the gate's rules, the decision, and the rollback."""
