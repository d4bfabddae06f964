"""Who becomes champion: the gate's criteria, and a promotion from evidence to decision."""
