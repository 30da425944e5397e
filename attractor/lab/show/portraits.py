"""Pictures of a network itself: what it learned, what it attends to, how it moves."""

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image, ImageDraw
from torch import Tensor

from attractor.images import Reconstructor, grid_side
from attractor.lab.experiment.examples import Trajectory, first_images, seen, visible
from attractor.lab.experiment.network import AttractorNetwork
from attractor.lab.show.figures import PAGE, STYLE, image_grid, save, show
from attractor.physics import Hopfield, Pairwise

GRID_TIMES = (1, 5, 20, 100)
_GIF_TIMES = (*range(21), 25, 30, 40, 50, 75, 100)


def retrieval_grid(
    trajectory: Trajectory,
    reference: tuple[str, Reconstructor],
    folder: Path,
    *,
    name: str,
    heading: str,
    others: Sequence[tuple[str, Trajectory]] = (),
    rows: int = 6,
) -> Path:
    """original | corrupted | t = 1, 5, 20, 100 and the chosen t | reference | others, for the first images.

    others: title and trajectory of models on the same images, shown at their chosen t.
    """
    few = first_images(trajectory.images, rows)
    columns = [("original", few.original), ("corrupted", seen(few))]
    for t in sorted({*GRID_TIMES, trajectory.chosen}):
        if t <= trajectory.steps:
            text = f"$t={t}$, chosen" if t == trajectory.chosen else f"$t={t}$"
            columns.append((text, trajectory.shown(t)[:rows]))
    title, model = reference
    columns.append((title, visible(next(iter(model.reconstruct(few))), few)))
    columns += [(title, other.shown(other.chosen)[:rows]) for title, other in others]
    return image_grid(columns, folder, name, heading=heading)


def coupling_matrices(network: AttractorNetwork, folder: Path) -> Path | None:
    """J_ij (D x D) from the central token's neighbours at growing distance, one colour scale."""
    couplings = network.energy.couplings
    if not isinstance(couplings, Pairwise | Hopfield):
        return None
    grid = grid_side(network.encoding.side, patch=network.encoding.patch)
    row = column = grid // 2
    centre = row * grid + column
    if centre not in couplings.rows:
        return None  # held by another process
    near = [(0, -1), (0, 1), (-1, 0), (1, 0), (-1, -1), (1, 1)]
    offsets = [*near, (0, 2), (1 - row, 1 - column)]
    sources = couplings.neighbours[centre].tolist() if isinstance(couplings, Pairwise) else None
    pairs = []
    for down, right in dict.fromkeys(offsets):
        r, c = row + down, column + right
        inside = 0 <= r < grid and 0 <= c < grid and (r, c) != (row, column)
        if inside and (sources is None or r * grid + c in sources):
            pairs.append((r * grid + c, f"{down:+d}, {right:+d}"))
    learned = couplings.couplings[centre - couplings.rows.start].cpu()  # (N, D, D)
    matrices = torch.stack([learned[j] for j, _ in pairs])
    limit = float(matrices.abs().max()) or 1.0
    with rc_context(STYLE):
        figure = Figure(figsize=(PAGE, 1.5), layout="constrained")
        cells = figure.subplots(1, len(pairs), squeeze=False)[0]
        picture = None
        for axes, matrix, (_, text) in zip(cells, matrices, pairs, strict=True):
            picture = axes.imshow(matrix.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
            axes.set_title(text, fontsize=7)
            axes.set_xticks([])
            axes.set_yticks([])
        cells[0].set_ylabel("component of $x_i$")
        cells[0].set_xlabel("component of $x_j$")
        if picture is not None:
            figure.colorbar(picture, ax=list(cells), shrink=0.8, label="$J_{ij}$ (dimensionless)")
        figure.suptitle(
            f"couplings of token $i$ in row {row}, column {column} (from 0) to token $j$, (down, right) of "
            f"it; components: {network.encoding.components}",
            fontsize=8,
        )
        return save(figure, folder, "couplings")


def attention_maps(network: AttractorNetwork, pixels: Tensor, folder: Path) -> Path | None:
    """Attention alpha_ij of four tokens i of one image (C, H, W) on all tokens j."""
    couplings = network.energy.couplings
    if not isinstance(couplings, Pairwise):
        return None  # sources are not tokens
    grid, patch = grid_side(network.encoding.side, patch=network.encoding.patch), network.encoding.patch
    with torch.inference_mode():
        attention = network.energy.attention(network.encode(pixels[None]))[0].cpu()  # (N, S)
        # what is no source has no attention, which is not the same as 0; the last column takes empty slots
        by_token = attention.new_full((couplings.tokens, couplings.tokens + 1), torch.nan)
        slots = couplings.neighbours.to(attention.device)
        by_token.scatter_(1, torch.where(slots < 0, couplings.tokens, slots), attention)
    low, high = grid // 3, max(grid // 3 + 1, 2 * grid // 3)
    queries = [(low, low), (low, high), (high, low), (high, high)]
    chosen = torch.stack([by_token[r * grid + c, :-1] for r, c in queries]).view(-1, grid, grid)
    colours = colormaps["viridis"].with_extremes(bad="0.7")
    highest = float(chosen.nan_to_num().max())
    with rc_context(STYLE):
        figure = Figure(figsize=(PAGE, 1.7), layout="constrained")
        cells = figure.subplots(1, len(queries) + 1, squeeze=False)[0]
        show(cells[0], pixels)
        cells[0].set_title("image, tokens $i$")
        picture = None
        for index, ((r, c), weights) in enumerate(zip(queries, chosen, strict=True), start=1):
            axes = cells[index]
            corner = (c * patch - 0.5, r * patch - 0.5)
            cells[0].add_patch(Rectangle(corner, patch, patch, fill=False, ec="#D55E00", lw=1))
            picture = axes.imshow(weights.numpy(), cmap=colours, vmin=0, vmax=highest)
            axes.add_patch(Rectangle((c - 0.5, r - 0.5), 1, 1, fill=False, ec="#D55E00", lw=1))
            axes.set_title(f"$i=({r}, {c})$")
            axes.set_xticks([])
            axes.set_yticks([])
        if picture is not None:
            figure.colorbar(picture, ax=list(cells), shrink=0.8, label=r"attention $\alpha_{ij}$")
        return save(figure, folder, "attention")


def trajectory_gif(trajectory: Trajectory, folder: Path) -> Path:
    """original | corrupted | state at t, for the first image, as an animation."""
    images = trajectory.images
    frames = [
        _frame(images.original[0], seen(images)[0], trajectory.shown(t)[0], t)
        for t in _GIF_TIMES
        if t <= trajectory.steps
    ]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"trajectory_{images.task}.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=250, loop=0)
    return path


def _frame(original: Tensor, corrupted: Tensor, state: Tensor, t: int) -> Image.Image:
    side, scale, margin = original.shape[-1], 112 // original.shape[-1] or 1, 14
    width = side * scale
    frame = Image.new("RGB", (3 * width + 4 * margin, width + 2 * margin + 6), "white")
    draw = ImageDraw.Draw(frame)
    texts = ("original", "corrupted", f"t = {t}")
    for index, (pixels, text) in enumerate(zip((original, corrupted, state), texts, strict=True)):
        values = (pixels.clamp(0, 1) * 255).round().byte().expand(3, -1, -1).movedim(0, -1).numpy()
        left = margin + index * (width + margin)
        picture = Image.fromarray(values).resize((width, width), Image.Resampling.NEAREST)
        frame.paste(picture, (left, margin + 6))
        draw.text((left, 4), text, fill="black")
    return frame
