"""How many slots images can make, and a machine can hold: said before any work."""

from attractor.lab.errors import ConfigError
from attractor.lab.experiment.machine import available_bytes
from attractor.physics import SlotRecipe

_CHUNK = 8192  # images that k-means compares with all slots at a time


def refuse_slots(recipe: SlotRecipe, *, images: int, pixels: int, heads: int) -> None:
    """ConfigError for slots that these images cannot make, or that the machine cannot hold."""
    if recipe.slots > images:
        raise ConfigError(
            f"model.slots is {recipe.slots:,}, but there are {images:,} images to train on; use fewer slots"
        )
    for name, rank in (("rank", recipe.rank), ("screening_rank", recipe.screening_rank)):
        if rank >= pixels:
            raise ConfigError(f"model.{name} is {rank}, but images have {pixels} pixels; use fewer")
    available = available_bytes()
    if available is None:
        return
    needed = _working_bytes(recipe, recipe.slots, images=images, pixels=pixels, heads=heads)
    fixed = _working_bytes(recipe, 0, images=images, pixels=pixels, heads=heads)
    if needed > available:
        fit = max(0, int((available - fixed) / ((needed - fixed) / recipe.slots)))
        raise ConfigError(
            f"{recipe.slots:,} slots of {pixels:,} pixels with model.heads={heads} need "
            f"{needed / 1e9:.1f} GB, and "
            f"{available / 1e9:.1f} GB are free; {fit:,} slots would fit: use model.slots={fit}, or fewer "
            "model.heads"
        )


def _working_bytes(recipe: SlotRecipe, slots: int, *, images: int, pixels: int, heads: int) -> int:
    """What heads of slots take at most, while they are made: the last one with its covariances.

    Beside them images as pixels of 4 bytes, and a copy as bytes, as pixels and as tokens of pixels.
    """
    matrices = slots * pixels**2
    kept = matrices + slots * pixels * (recipe.rank + recipe.screening_rank + 1)
    return 4 * (heads * kept + matrices + _CHUNK * slots) + 13 * images * pixels
