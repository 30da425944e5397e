"""Configurations field by field: in what two of them differ, and which differences make another run."""

from typing import Any

from omegaconf import OmegaConf

# Where and how a run is computed and shown, not what it computes
FREE = (
    "data.root",
    "data.download",
    "device",
    "backend",
    "threads",
    "beside",
    "figures",
    "wandb",
    "objective",
    "on_error",
    "train.stop_after",
)
# What only says where a run is
PLACE = ("folder", "resume")


def leaves(config: Any) -> dict[str, Any]:
    """name.of.field -> plain value."""

    def walk(values: Any, prefix: str) -> dict[str, Any]:
        if not isinstance(values, dict):
            return {prefix: values}
        inner: dict[str, Any] = {}
        for name, value in values.items():
            inner |= walk(value, f"{prefix}.{name}" if prefix else str(name))
        return inner

    return walk(OmegaConf.to_container(config, resolve=True, enum_to_str=True), "")


def within(name: str, groups: tuple[str, ...]) -> bool:
    """Whether a field is one of `groups`, or in one of them."""
    return any(name == group or name.startswith(f"{group}.") for group in groups)


def differences(
    before: dict[str, Any], now: dict[str, Any], *, free: tuple[str, ...] = (*FREE, *PLACE)
) -> dict[str, tuple[Any, Any]]:
    """Field -> (before, now), of the leaves, but `free` ones, that make `now` another run than `before`."""
    return {
        name: (before.get(name), now.get(name))
        for name in dict.fromkeys([*before, *now])
        if not within(name, free) and before.get(name) != now.get(name)
    }
