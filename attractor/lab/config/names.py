"""The values of fields that are one of a few names."""

from enum import Enum


class CouplingsName(Enum):
    pairwise = "pairwise"
    hopfield = "hopfield"


class MeasureName(Enum):
    sphere = "sphere"
    circles = "circles"
    gaussian = "gaussian"


class MapName(Enum):
    attention = "attention"
    mean_field = "mean_field"
    mean_field_projected = "mean_field_projected"
    gibbs = "gibbs"


class OrderName(Enum):
    synchronous = "synchronous"
    sequential = "sequential"


class TaskName(Enum):
    masked = "masked"
    denoise = "denoise"


class DeviceName(Enum):
    auto = "auto"  # cuda where there is a GPU
    cpu = "cpu"
    cuda = "cuda"


class WandbMode(Enum):
    offline = "offline"
    online = "online"
    disabled = "disabled"
    dryrun = "dryrun"  # wandb's old word for offline, which WANDB_MODE may still hold


# After a job has failed, a sweep either runs the others or starts no more of them. (A class cannot have a
# member that is called `continue`.)
OnError = Enum("OnError", {"continue": "continue", "stop": "stop"})


class Objective(Enum):
    """What train.py returns, for sweepers; all of it measured on validation images."""

    val = "val"  # the lowest geometric mean of the tasks' errors during training; less is better
    masked = "masked"  # the error of the retrieval that was chosen for the task; less is better
    denoise = "denoise"
    log_pl = "log_pl"  # log pseudo-likelihood, nats per token; more is better
