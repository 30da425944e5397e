"""What a memory and slots have in common as networks of the lab."""

import torch

from attractor.images import PixelEncoding
from attractor.images.symmetries import copies


class Undivided:
    """A network of pixels that learns from images and their copies.

    It counts as one row, which no other process can share.
    """

    rows = range(1)
    backend_name = "torch"
    ranks = None

    def __init__(self, encoding: PixelEncoding, *, descriptions: list[str], device: torch.device) -> None:
        """descriptions: of copies, see `images.symmetries`. Raises ValueError for copies that are none."""
        self.encoding, self.device = encoding, device
        self.symmetries = copies(descriptions, side=encoding.side)
