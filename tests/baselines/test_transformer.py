"""Transformers: a layer against torch's own; what masks, positions and recycling must and must not do."""

from collections.abc import Callable
from itertools import islice

import pytest
import torch
from torch import Generator, Tensor, nn

from attractor.baselines import RecycledBlock, Transformer
from attractor.baselines.transformer import Block

TOKENS, DIM, WIDTH, HEADS = 6, 4, 16, 2
Network = Transformer | RecycledBlock


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def transformer(seed: int = 0) -> Transformer:
    return Transformer(
        tokens=TOKENS, dim=DIM, width=WIDTH, depth=3, heads=HEADS, generator=generator(seed)
    ).double()


def recycled(seed: int = 0, *, least: int = 2, most: int = 4) -> RecycledBlock:
    return RecycledBlock(
        tokens=TOKENS,
        dim=DIM,
        width=WIDTH,
        heads=HEADS,
        min_iterations=least,
        max_iterations=most,
        generator=generator(seed),
    ).double()


NETWORKS: list[Callable[[], Network]] = [transformer, recycled]


def images(count: int = 3, seed: int = 1) -> Tensor:
    return torch.randn(count, TOKENS, DIM, generator=generator(seed), dtype=torch.float64)


def predict(network: Network, x: Tensor, mask: Tensor | None = None, t: int = 3) -> Tensor:
    """The last of at most t predictions."""
    with torch.no_grad():
        return list(islice(network.predictions(x, mask), t))[-1]


def test_a_block_is_torchs_pre_norm_layer() -> None:
    """nn.TransformerEncoderLayer(norm_first) with the same weights gives the same states, to 1e-12.

    A mistake in how heads are split, scaled or joined would give other states, and a weaker baseline.
    """
    block = Block(WIDTH, HEADS).double()
    layer = nn.TransformerEncoderLayer(
        WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    ).double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(generator=generator(parameter.numel()))
        pairs = [
            (layer.self_attn.in_proj_weight, block.queries_keys_values.weight),
            (layer.self_attn.in_proj_bias, block.queries_keys_values.bias),
            (layer.self_attn.out_proj.weight, block.attention_out.weight),
            (layer.self_attn.out_proj.bias, block.attention_out.bias),
        ]
        for theirs, ours in (
            (layer.linear1, block.hidden),
            (layer.linear2, block.hidden_out),
            (layer.norm1, block.attention_norm),
            (layer.norm2, block.hidden_norm),
        ):
            pairs += [(theirs.weight, ours.weight), (theirs.bias, ours.bias)]
        for theirs, ours in pairs:
            theirs.copy_(ours)
    h = torch.randn(2, TOKENS, WIDTH, generator=generator(), dtype=torch.float64)
    torch.testing.assert_close(block(h), layer(h), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", NETWORKS)
def test_what_a_masked_token_holds_does_not_matter(make: Callable[[], Network]) -> None:
    """Other numbers under the mask change no prediction at all; without the mask they change all of them.

    Hidden pixels that leak through would make masked prediction easy and its error a lie.
    """
    network, x = make(), images()
    mask = torch.zeros(len(x), TOKENS, dtype=torch.bool)
    mask[:, 1] = mask[0, 4] = True
    other = torch.where(mask[..., None], x + 5, x)
    torch.testing.assert_close(predict(network, x, mask), predict(network, other, mask), rtol=0, atol=0)
    changed = (predict(network, x) - predict(network, other)).abs().amax(-1)
    assert (changed[0] > 1e-6).all()


@pytest.mark.parametrize("make", NETWORKS)
def test_tokens_are_told_apart_by_position_alone(make: Callable[[], Network]) -> None:
    """Permuting tokens together with the positions permutes the predictions; without them it does not."""
    network, x = make(), images()
    order = torch.randperm(TOKENS, generator=generator(3))
    before = predict(network, x)
    moved = predict(network, x[:, order])
    assert (moved - before[:, order]).abs().max() > 1e-3
    with torch.no_grad():
        network.positions.copy_(network.positions[order])
    torch.testing.assert_close(predict(network, x[:, order]), before[:, order], rtol=1e-12, atol=1e-12)


def test_a_recycled_block_is_one_block_again_and_again() -> None:
    """Prediction t is that of `forward` with t iterations, and that of embedding, t blocks and readout."""
    network, x = recycled(), images()
    with torch.no_grad():
        h = network.embed(x, None)
        for t, prediction in enumerate(islice(network.predictions(x), 5), start=1):
            h = network.blocks[0](h)
            torch.testing.assert_close(prediction, network.predict(h), rtol=0, atol=0)
            torch.testing.assert_close(prediction, network(x, iterations=t), rtol=0, atol=0)


def test_a_transformer_predicts_once() -> None:
    """One entry in its curve; its blocks have weights of their own."""
    network = transformer()
    assert len(list(network.predictions(images()))) == 1
    first, second, *_ = network.blocks
    assert not torch.equal(first.hidden.weight, second.hidden.weight)


def test_weights_follow_from_the_generator() -> None:
    """The same seed gives the same bits whatever the global generator is, another seed others."""
    torch.manual_seed(5)
    one = transformer(seed=3).state_dict()
    torch.manual_seed(6)
    same, other = transformer(seed=3).state_dict(), transformer(seed=4).state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["positions"], other["positions"])


def test_sizes_that_do_not_fit_are_refused() -> None:
    """With what was given and what is allowed."""
    with pytest.raises(ValueError, match="width is 10 and heads are 4"):
        Transformer(tokens=4, dim=4, width=10, depth=1, heads=4, generator=generator())
    with pytest.raises(ValueError, match="min_iterations is 3, max_iterations 2"):
        recycled(least=3, most=2)
    with pytest.raises(ValueError, match=r"tokens are \(2, 5, 4\), expected .*\(B, 6, 4\)"):
        predict(transformer(), torch.zeros(2, 5, 4, dtype=torch.float64))
