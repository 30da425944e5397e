"""The registry: which object a configuration stands for. The only place that knows names and classes.

Everything is refused here that the objects themselves refuse, as a ConfigError, before any work.
"""

from itertools import product
from typing import Any

import torch
from torch import Generator, Tensor, cuda

from attractor.baselines import RecycledBlock, Transformer
from attractor.images import (
    Denoise,
    Encoding,
    ImageSplits,
    Masked,
    PhaseEncoding,
    PixelEncoding,
    Task,
    grid_side,
    load,
)
from attractor.images.symmetries import copies
from attractor.lab.config.names import CouplingsName, DeviceName, MapName, MeasureName, OrderName, TaskName
from attractor.lab.config.schema import (
    AttractorConfig,
    Config,
    DataConfig,
    LocalLinearMemoryConfig,
    ModelConfig,
    SlotsConfig,
    TaskConfig,
    TransformerBlockConfig,
    TransformerConfig,
)
from attractor.lab.errors import ConfigError, configuring
from attractor.lab.experiment.memory_network import MemoryNetwork, refuse_more_than_fits
from attractor.lab.experiment.network import AttractorNetwork, Network, Reading, Retrieval
from attractor.lab.experiment.recollection_choice import check_neighbours, first_recollection
from attractor.lab.experiment.slot_choice import first_slot_reading
from attractor.lab.experiment.slot_limits import refuse_slots
from attractor.lab.experiment.slot_network import SlotNetwork
from attractor.lab.experiment.transformers import Passes, TransformerNetwork
from attractor.physics import (
    Backend,
    Circles,
    Gaussian,
    Hopfield,
    LocalEnergy,
    Measure,
    Pairwise,
    Ranks,
    SlotRecipe,
    Sphere,
    neighbourhood,
)


def build_data(config: DataConfig) -> ImageSplits:
    """The images, held in memory. Raises ConfigError or DataError."""
    with configuring():
        splits = load(
            config.name,
            root=config.root,
            validation=config.validation,
            download=config.download,
        )
    if config.train_images is None:
        return splits
    if config.train_images > len(splits.train):
        raise ConfigError(
            f"data.train_images is {config.train_images}, but {splits.name} has {len(splits.train)} "
            "images to train on; use fewer, or null for all"
        )
    return splits.fewer(config.train_images)


def refuse_memory(config: ModelConfig, splits: ImageSplits) -> None:
    """Refuse a memory or slots that these images cannot fill, or that would overfill the machine."""
    if isinstance(config, LocalLinearMemoryConfig):
        with configuring():
            count = len(copies(config.copies, side=splits.side))
        check_neighbours(config, stored=len(splits.train), copies=count)
        refuse_more_than_fits(len(splits.train), splits.train[0].numel(), copies=count)
    if isinstance(config, SlotsConfig):
        images, pixels = len(splits.train), splits.train[0].numel()
        refuse_slots(_recipe(config), images=images, pixels=pixels, heads=config.heads)


def build_network(
    config: ModelConfig,
    mean: Tensor,
    *,
    seed: int,
    device: DeviceName = DeviceName.auto,
    backend: Backend = Backend.auto,
    ranks: Ranks | None = None,
) -> Network:
    """An untrained network for images like the training mean (C, H, W), in pixels: J = 0, or small weights.

    With `ranks` it holds the rows of this process. Refuses a device or a backend that cannot be used.
    """
    if not isinstance(config, AttractorConfig):
        if ranks is not None and ranks.count > 1:
            raise ConfigError(f"{config.name} is no network of rows that processes could share; start one")
        if isinstance(config, LocalLinearMemoryConfig):
            return _memory(config, mean, device=device)
        if isinstance(config, SlotsConfig):
            return _slots(config, mean, device=device)
        return _transformer(config, mean, seed=seed, device=device)
    with configuring():
        encoding = _encoding(config, mean, Generator().manual_seed(seed))
        couplings = _couplings(config, encoding, None if ranks is None else ranks.rows(encoding.tokens))
        couplings.to(_device(device))
        energy = LocalEnergy(
            couplings,
            _measure(config, encoding),
            inverse_temperature=config.inverse_temperature,
            backend=backend,
            ranks=ranks,
        )
        network = AttractorNetwork(energy, encoding)
        _ = network.backend
    return network


def _memory(config: LocalLinearMemoryConfig, mean: Tensor, *, device: DeviceName) -> MemoryNetwork:
    channels, side, _ = mean.shape
    with configuring():
        return MemoryNetwork(
            PixelEncoding(channels, side, patch=config.patch, mean=mean),
            descriptions=config.copies,
            grain=config.grain,
            candidates=config.candidates,
            device=torch.device(_device(device)),
        )


def _slots(config: SlotsConfig, mean: Tensor, *, device: DeviceName) -> SlotNetwork:
    channels, side, _ = mean.shape
    with configuring():
        return SlotNetwork(
            PixelEncoding(channels, side, patch=config.patch, mean=mean),
            _recipe(config),
            heads=config.heads,
            descriptions=config.copies,
            device=torch.device(_device(device)),
        )


def _recipe(config: SlotsConfig) -> SlotRecipe:
    """The sizes; the rest is for the rule to say."""
    return SlotRecipe(
        slots=config.slots,
        parents=config.parents,
        rank=config.rank,
        screening_rank=config.screening_rank,
    )


def _transformer(config: ModelConfig, mean: Tensor, *, seed: int, device: DeviceName) -> TransformerNetwork:
    channels, side, _ = mean.shape
    module: Transformer | RecycledBlock
    with configuring():
        encoding = PixelEncoding(channels, side, patch=config.patch, mean=mean)
        common: Any = {"tokens": encoding.tokens, "dim": encoding.dim}
        common["generator"] = Generator().manual_seed(seed)
        match config:
            case TransformerConfig(width=width, heads=heads, depth=depth):
                module = Transformer(width=width, heads=heads, depth=depth, **common)
            case TransformerBlockConfig(width=width, heads=heads):
                least, most = config.min_iterations, config.max_iterations
                module = RecycledBlock(
                    width=width, heads=heads, min_iterations=least, max_iterations=most, **common
                )
            case _:
                raise ConfigError(f"no model for {type(config).__name__}")
    return TransformerNetwork(module.to(_device(device)), encoding)


def _device(name: DeviceName) -> str:
    if name is DeviceName.cuda and not cuda.is_available():
        raise ConfigError("device is cuda, but there is no GPU that torch can use; use device=cpu")
    return "cuda" if name is not DeviceName.cpu and cuda.is_available() else "cpu"


def _encoding(config: AttractorConfig, mean: Tensor, generator: Generator) -> Encoding:
    channels, side, _ = mean.shape
    if config.measure is MeasureName.gaussian:
        if config.projection is not None:
            raise ConfigError("model.projection is for the sphere; the Gaussian measure uses raw pixels")
        return PixelEncoding(channels, side, patch=config.patch, mean=mean)
    if config.measure is MeasureName.circles and config.projection is not None:
        raise ConfigError("model.projection mixes the circles of a token; use model.measure=sphere")
    return PhaseEncoding(
        channels,
        side,
        patch=config.patch,
        span=config.span,
        mean=mean,
        projection_dim=config.projection,
        generator=generator,
    )


def _couplings(config: AttractorConfig, encoding: Encoding, rows: range | None) -> Hopfield | Pairwise:
    match config.couplings:
        case CouplingsName.hopfield:
            return Hopfield(encoding.tokens, encoding.dim, rows=rows)
        case CouplingsName.pairwise if config.radius is None:
            return Pairwise(encoding.tokens, encoding.dim, rows=rows)
        case CouplingsName.pairwise:
            table = neighbourhood(grid_side(encoding.side, patch=encoding.patch), config.radius)
            return Pairwise(encoding.tokens, encoding.dim, neighbours=table, rows=rows)


def _measure(config: AttractorConfig, encoding: Encoding) -> Measure:
    match config.measure:
        case MeasureName.sphere:
            return Sphere(encoding.dim)
        case MeasureName.circles:
            return Circles(encoding.dim // 2)
        case MeasureName.gaussian:
            return Gaussian(encoding.dim)


def build_tasks(config: TaskConfig, *, patch: int, side: int) -> dict[str, Task]:
    """Name -> task, in the order of the configuration; refuses corruptions that leave nothing to do."""
    with configuring():
        tasks: dict[str, Task] = {}
        for name in config.names:
            if name is TaskName.masked:
                masked = Masked(config.mask_fraction, patch=patch)
                masked.masked_tokens(side)
                tasks[name.value] = masked
            else:
                tasks[name.value] = Denoise(config.noise_variance)
    return tasks


def validation_candidates(config: Config) -> list[Reading]:
    """Those of validations in training: the first inertia is enough to tell couplings apart."""
    return build_candidates(config, evidence=False)[:: len(config.dynamics.inertias)]


def build_candidates(config: Config, *, evidence: bool) -> list[Reading]:
    """The retrievals to choose from, free or with evidence; a transformer has one, of which t is chosen."""
    if isinstance(config.model, LocalLinearMemoryConfig):
        return [first_recollection(config.model, noise_variance=config.task.noise_variance)]
    if isinstance(config.model, SlotsConfig):
        return [first_slot_reading(config.model, noise_variance=config.task.noise_variance)]
    if not isinstance(config.model, AttractorConfig):
        return [Passes(recycled=isinstance(config.model, TransformerBlockConfig))]
    dynamics = config.dynamics
    gaussian = config.model.measure is MeasureName.gaussian
    # all tokens at once is a block Jacobi iteration for a Gaussian, which diverges on real images
    order = dynamics.order or (OrderName.sequential if gaussian else OrderName.synchronous)
    maps = dynamics.maps
    if gaussian and MapName.attention in maps:
        # without a fixed norm the force is unbounded: only the conditional mean and draws make sense
        maps = [name for name in maps if name is not MapName.attention]
        if not maps:
            raise ConfigError("dynamics.maps has only attention, which needs spins of fixed norm")
    return [
        Retrieval(
            map=name,
            inverse_temperature=temperature,
            inertia=inertia,
            damping=dynamics.damping,
            order=order,
            evidence=strength,
            seed=config.seed,
        )
        for name, temperature, inertia, strength in product(
            maps,
            dynamics.inverse_temperatures,
            dynamics.inertias,
            dynamics.evidence if evidence else [0.0],
        )
    ]
