"""The lab: configured, tracked and repeatable experiments."""

from attractor.lab.runs import TrainedModel, load_run

__all__ = ["TrainedModel", "load_run"]
