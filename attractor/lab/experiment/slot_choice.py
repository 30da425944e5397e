"""Choosing how to read slots, on validation images, task by task: the temperature of their posterior."""

from dataclasses import replace

from attractor.images import Corrupted
from attractor.lab.config.schema import SlotsConfig
from attractor.lab.experiment.selection import Choice
from attractor.lab.experiment.slot_network import SlotNetwork, SlotReading


def first_slot_reading(config: SlotsConfig, *, noise_variance: float) -> SlotReading:
    """The one by which slots are validated once they have learned: the middle of the list."""
    temperatures = config.inverse_temperatures
    return SlotReading(config.candidates, temperatures[len(temperatures) // 2], noise_variance)


def choose_slot_reading(
    network: SlotNetwork, config: SlotsConfig, corrupted: Corrupted, *, noise_variance: float
) -> Choice:
    """The inverse temperature with the lowest error on `corrupted`, validation images of a task."""
    first = replace(first_slot_reading(config, noise_variance=noise_variance), steps=1)
    found = network.tempered(corrupted, first, config.inverse_temperatures)
    tried = [
        Choice(replace(first, inverse_temperature=temperature), float(corrupted.squared_error(x).mean()))
        for temperature, x in zip(config.inverse_temperatures, found, strict=True)
    ]
    return min(tried, key=lambda choice: choice.error)
