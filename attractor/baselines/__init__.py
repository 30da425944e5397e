"""Models to be measured against: what a data set gives away without learning an attractor."""

from attractor.baselines.backprop import Backprop
from attractor.baselines.mean import TrainingMean
from attractor.baselines.memory import DenseMemory
from attractor.baselines.regression import LinearRegression
from attractor.baselines.transformer import RecycledBlock, Transformer
from attractor.baselines.universal import UniversalMemory

__all__ = [
    "Backprop",
    "DenseMemory",
    "LinearRegression",
    "RecycledBlock",
    "TrainingMean",
    "Transformer",
    "UniversalMemory",
]
