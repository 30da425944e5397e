"""The lab: configured, tracked and repeatable experiments."""

from attractor.lab.run.finished import TrainedModel, load_run

__all__ = ["TrainedModel", "load_run"]
