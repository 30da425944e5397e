"""The schema: what a run, a model and a rule are asked for, and which values are refused."""
