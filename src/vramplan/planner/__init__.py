"""The planner: what fits at most, what makes it fit, which ways of running a model there are, which GPU to take. It asks estimates only."""
