"""Models to be measured against: what a data set gives away without learning an attractor."""

from attractor.baselines.mean import TrainingMean
from attractor.baselines.memory import DenseMemory
from attractor.baselines.regression import LinearRegression

__all__ = ["DenseMemory", "LinearRegression", "TrainingMean"]
