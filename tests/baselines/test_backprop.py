"""Backpropagation: a step against AdamW written out, and what must hold around it."""

import copy
import math

import pytest
import torch
from torch import Generator, Tensor

from attractor.baselines import Backprop, RecycledBlock, Transformer

TOKENS, DIM = 6, 4
BETAS, EPSILON = (0.9, 0.95), 1e-8


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def transformer(seed: int = 0) -> Transformer:
    return Transformer(tokens=TOKENS, dim=DIM, width=16, depth=2, heads=2, generator=generator(seed))


def batch(seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, mask, target."""
    draws = generator(seed)
    x, target = torch.randn(2, 5, TOKENS, DIM, generator=draws)
    mask = torch.rand(5, TOKENS, generator=draws) < 0.4
    mask[:, 0] = True
    return x, mask, target


def trainer(network: Transformer | RecycledBlock, **settings: float) -> Backprop:
    given = {"learning_rate": 0.01, "weight_decay": 0.1, "warmup": 10, "clip": 1.0} | settings
    return Backprop(network, **given)


def test_a_step_is_adamw_of_the_clipped_gradient() -> None:
    """Two steps equal Loshchilov & Hutter's equations written out with autograd's gradient, to 1e-6.

    A wrong decay group, clip or rate would still train, and worse.
    """
    network, clip, decay = transformer(), 0.05, 0.1
    x, mask, target = batch()
    by_hand = copy.deepcopy(network)
    backprop = trainer(network, clip=clip, weight_decay=decay)
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in by_hand.named_parameters()}
    for t, rate in enumerate((0.01, 0.003), start=1):
        error = (by_hand(x, mask) - target)[mask].square().mean()
        names = dict(by_hand.named_parameters())
        gradients = dict(zip(names, torch.autograd.grad(error, list(names.values())), strict=True))
        norm = torch.stack([g.square().sum() for g in gradients.values()]).sum().sqrt()
        assert norm > clip  # or nothing would be cut
        with torch.no_grad():
            for name, weight in names.items():
                g = gradients[name] * clip / norm
                first, second = moments[name]
                first.mul_(BETAS[0]).add_(g, alpha=1 - BETAS[0])
                second.mul_(BETAS[1]).add_(g.square(), alpha=1 - BETAS[1])
                if weight.dim() > 1:
                    weight.mul_(1 - rate * decay)
                corrected = second.div(1 - BETAS[1] ** t).sqrt() + EPSILON
                weight.sub_(rate * first / (1 - BETAS[0] ** t) / corrected)
        returned = backprop.step(x, mask, target, rate=rate, generator=generator())
        assert returned == pytest.approx(float(error.detach()), rel=1e-6)
        for name, weight in network.named_parameters():
            torch.testing.assert_close(weight, by_hand.state_dict()[name], rtol=1e-4, atol=1e-5, msg=name)


def test_the_error_is_that_of_hidden_tokens_or_of_all() -> None:
    """Other targets under no mask change nothing for masked prediction, and the error for denoising."""
    x, mask, target = batch()
    other = torch.where(mask[..., None], target, target + 3)
    errors = [
        trainer(transformer()).step(x, seen, goal, rate=0.0, generator=generator())
        for seen in (mask, None)
        for goal in (target, other)
    ]
    assert errors[0] == errors[1]
    assert errors[3] > errors[2] + 1


def test_the_rate_warms_up_and_follows_a_cosine() -> None:
    """rate = learning_rate min(1, max(index / warmup, 5 progress)) (1 + cos(pi progress)) / 2."""
    backprop = trainer(transformer(), learning_rate=0.02, warmup=10)
    assert backprop.rate(1, 0.0) == pytest.approx(0.002)
    assert backprop.rate(10, 0.0) == pytest.approx(0.02)
    assert backprop.rate(50, 0.5) == pytest.approx(0.01)
    assert backprop.rate(100, 1.0) == pytest.approx(0.0, abs=1e-12)
    # where a fifth of training comes before step 10, the rise ends there: short trainings get beyond it
    assert backprop.rate(2, 0.1) == pytest.approx(0.01 * (1 + math.cos(0.1 * math.pi)) / 2)
    assert backprop.rate(3, 0.2) == pytest.approx(0.02 * (1 + math.cos(0.2 * math.pi)) / 2)


def test_training_stops_before_it_harms() -> None:
    """A batch whose error is not finite is refused, and no weight has moved."""
    network = transformer()
    backprop = trainer(network)
    x, mask, target = batch()
    before = copy.deepcopy(network.state_dict())
    target[0, 0] = math.nan
    with pytest.raises(ArithmeticError, match="the error is nan"):
        backprop.step(x, mask, target, rate=0.01, generator=generator())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_a_state_taken_over_goes_on_bit_for_bit() -> None:
    """Four steps equal two steps, a copy of weights and state, and two more. Lost moments would differ."""
    x, mask, target = batch()

    def advance(backprop: Backprop, steps: int) -> None:
        for _ in range(steps):
            backprop.step(x, mask, target, rate=0.01, generator=generator())

    whole, half = transformer(), transformer()
    advance(trainer(whole), 4)
    first = trainer(half)
    advance(first, 2)
    other = transformer(seed=9)
    other.load_state_dict(half.state_dict())
    second = trainer(other)
    second.restore(first.state)
    advance(second, 2)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in whole.state_dict().items())


def test_how_often_a_block_is_recycled_is_drawn() -> None:
    """Every number from least to most comes up, none other, and the generator alone decides."""
    network = RecycledBlock(
        tokens=TOKENS, dim=DIM, width=8, heads=2, min_iterations=2, max_iterations=4, generator=generator()
    )
    seen: list[int] = []
    network.blocks[0].register_forward_hook(lambda *_: seen.append(1))
    x, _, target = batch()
    counts = []
    for seed in range(30):
        seen.clear()
        trainer(network).step(x, None, target, rate=0.0, generator=generator(seed))
        counts.append(len(seen))
    assert set(counts) == {2, 3, 4}


def test_it_learns() -> None:
    """A fixed batch is learned to a tenth of its error in 150 steps, in bfloat16 too."""
    for bfloat16 in (False, True):
        backprop = Backprop(
            transformer(), learning_rate=0.01, weight_decay=0.0, warmup=10, clip=1.0, bfloat16=bfloat16
        )
        x, mask, target = batch()
        errors = [
            backprop.step(x, mask, target, rate=backprop.rate(t, t / 150), generator=generator())
            for t in range(1, 151)
        ]
        assert errors[-1] < 0.1 * errors[0]
