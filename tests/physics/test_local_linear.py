"""Local linear attention: certified by autograd, by its two forms, and by its two limits."""

import math

import pytest
import torch
from torch import Tensor

from attractor.baselines import DenseMemory, LinearRegression
from attractor.images import Denoise, Masked, squared_distances, synthetic, to_patches, to_pixels
from attractor.images.symmetries import copies
from attractor.physics import (
    LocalAttention,
    LocalLinearMemory,
    MeanField,
    PatternMemory,
    PixelEvidence,
    Shortlist,
    Stop,
    Synchronous,
    noisy,
    run,
    seen,
)
from attractor.physics.local_linear import (
    attended_moments,
    log_normaliser,
    response_by_components,
    response_by_patterns,
)

PATCH, SIDE = 2, 8
TOKENS = (SIDE // PATCH) ** 2
SPLITS = synthetic(train=300)
DISTANCES = squared_distances(1, SIDE, patch=PATCH)
TASK = Masked(0.3, patch=PATCH)


def stored(descriptions: tuple[str, ...] = ()) -> PatternMemory:
    levels = [to_patches(copy(SPLITS.train), patch=PATCH) for copy in copies(descriptions, side=SIDE)]
    return PatternMemory(torch.stack(levels).flatten(2), tokens=TOKENS)


def masked(images: int = 6, *, dtype: torch.dtype = torch.float64):  # type: ignore[no-untyped-def]
    """Test images with hidden tokens, and what is known of them."""
    corrupted = TASK.corrupt(to_pixels(SPLITS.test[:images], dtype), range(images), seed=0)
    assert corrupted.mask is not None
    visible = ~corrupted.mask[:, :, None].expand(-1, -1, PATCH * PATCH).flatten(1)
    pixels = to_patches(corrupted.corrupted, patch=PATCH).flatten(1)
    return corrupted, seen(pixels, visible, variance=1e-3)


def denoised(images: int = 6, *, dtype: torch.dtype = torch.float64):  # type: ignore[no-untyped-def]
    corrupted = Denoise(0.7).corrupt(to_pixels(SPLITS.test[:images], dtype), range(images), seed=0)
    return corrupted, noisy(to_patches(corrupted.corrupted, patch=PATCH).flatten(1), variance=0.7)


def answer(memory: PatternMemory, attention: LocalAttention, known: Shortlist, x: Tensor) -> Tensor:
    system = LocalLinearMemory(memory, attention, squared_distances=DISTANCES)
    return system.conditional_mean(x, evidence=known)


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_mean_and_covariance_are_the_derivatives_of_the_log_normaliser() -> None:
    """mu = grad G(0), C = Hessian G(0) by autograd; else the response would be no regression."""
    scores, patterns = draws(3, 7), draws(3, 7, 5, seed=1)
    mean, deviations = attended_moments(torch.softmax(scores, 1), patterns.clone())
    for t in range(3):

        def g(eta: Tensor, t: int = t) -> Tensor:
            return log_normaliser(scores[t], patterns[t], eta)

        zero = torch.zeros(5, dtype=torch.float64)
        torch.testing.assert_close(mean[t], torch.autograd.functional.jacobian(g, zero), rtol=0, atol=1e-12)
        hessian = torch.autograd.functional.hessian(g, zero)
        torch.testing.assert_close(deviations[t].T @ deviations[t], hessian, rtol=0, atol=1e-12)


def test_both_forms_of_the_response_are_the_formula() -> None:
    """K x K, P x P and mu + C (C + D^-1)^-1 (o - mu) agree, with K < P and K > P."""
    for k, p in ((4, 9), (12, 5)):
        mean, deviations = attended_moments(torch.softmax(draws(2, k), 1), draws(2, k, p, seed=1))
        observed, gain = draws(2, p, seed=2), draws(2, p, seed=3).square() + 0.1
        covariance = deviations.transpose(1, 2) @ deviations
        system = covariance + torch.diag_embed(1 / gain)
        shift = torch.linalg.solve(system, (observed - mean).unsqueeze(-1))
        expected = (mean + (covariance @ shift).squeeze(-1))[:, -2:]
        by_patterns = response_by_patterns(mean, deviations, observed, gain, outputs=2)
        by_components = response_by_components(mean, covariance.clone(), observed, gain, outputs=2)
        torch.testing.assert_close(by_patterns, expected, rtol=0, atol=1e-10)
        torch.testing.assert_close(by_components, expected, rtol=0, atol=1e-10)


def test_the_response_is_the_gaussian_conditional() -> None:
    """It minimises (x - mu) C^-1 (x - mu) / 2 - sum_p D_p (o_p x_p - x_p^2 / 2): no gradient is left."""
    patterns = draws(1, 40, 4)
    mean, deviations = attended_moments(torch.full((1, 40), 1 / 40, dtype=torch.float64), patterns)
    observed, gain = draws(1, 4, seed=5), torch.tensor([[2.0, 0.0, 0.5, 3.0]], dtype=torch.float64)
    x = response_by_patterns(mean, deviations, observed, gain, outputs=4)
    covariance = (deviations.transpose(1, 2) @ deviations)[0]
    gradient = torch.linalg.solve(covariance, (x - mean)[0]) - (gain * (observed - x))[0]
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-10)


@pytest.mark.parametrize("neighbours", [None, "all"])
def test_attending_to_all_alike_is_linear_regression(neighbours: str | None) -> None:
    """tau -> 0 is the regression reference under a mask, to 1e-6: the first of the two limits."""
    memory = stored()
    corrupted, evidence = masked()
    known = memory.search(evidence, memory.count, asked=corrupted.mask)
    attention = LocalAttention(
        neighbours=memory.count if neighbours else None, inverse_temperature=0.0, window=None
    )
    x = to_patches(corrupted.corrupted, patch=PATCH)
    found = answer(memory, attention, known, x)
    reference = next(LinearRegression(SPLITS.train, ridge=1e-3).reconstruct(corrupted))
    torch.testing.assert_close(found, to_patches(reference, patch=PATCH), rtol=0, atol=1e-6)


def test_attending_to_all_alike_is_the_wiener_filter() -> None:
    """Under noise the same limit is mu + C (C + v)^-1 (y - mu), by linear algebra, to 1e-6."""
    memory = stored()
    corrupted, _ = denoised()
    y = to_patches(corrupted.corrupted, patch=PATCH).flatten(1)
    evidence = noisy(y, variance=0.7, clipped=False)
    found = answer(
        memory,
        LocalAttention(neighbours=None, window=None),
        memory.search(evidence, memory.count),
        torch.zeros(len(y), TOKENS, PATCH**2, dtype=torch.float64),
    )
    stored_pixels = to_patches(to_pixels(SPLITS.train, torch.float64), patch=PATCH).flatten(1)
    mean, covariance = stored_pixels.mean(0), stored_pixels.T.cov(correction=0)
    noise = 0.7 * torch.eye(len(mean), dtype=torch.float64)
    expected = mean + (covariance @ torch.linalg.solve(covariance + noise, (y - mean).T)).T
    torch.testing.assert_close(found.flatten(1), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("task", ["masked", "denoise"])
def test_without_a_response_it_is_the_softmax_memory(task: str) -> None:
    """C -> 0 in the response is the memory reference, to 1e-6: the second limit."""
    memory, beta = stored(), 1.0
    if task == "masked":
        corrupted, evidence = masked()
        tau = beta * 1e-3
    else:
        corrupted, _ = denoised()
        y = to_patches(corrupted.corrupted, patch=PATCH).flatten(1)
        evidence, tau = noisy(y, variance=0.7, clipped=False), beta * 0.7
    attention = LocalAttention(
        neighbours=memory.count, inverse_temperature=tau, relative=False, softening=math.inf
    )
    known = memory.search(evidence, memory.count, asked=corrupted.mask)
    x = to_patches(corrupted.corrupted, patch=PATCH)
    found = answer(memory, attention, known, x)
    reference = next(DenseMemory(SPLITS.train, beta={task: beta}).reconstruct(corrupted))
    asked = torch.ones(x.shape[:2], dtype=torch.bool) if corrupted.mask is None else corrupted.mask
    expected = to_patches(reference, patch=PATCH)[asked]
    torch.testing.assert_close(found[asked], expected, rtol=0, atol=1e-6)


def test_a_wide_reach_is_one_attention_for_the_image() -> None:
    """rho -> infinity makes every token attend alike: the windows and their columns are in their places."""
    memory = stored(("shift 1",))
    corrupted, evidence = masked()
    known = memory.search(evidence, 80, asked=corrupted.mask)
    x = to_patches(corrupted.corrupted, patch=PATCH)
    whole = LocalAttention(neighbours=120, window=None)
    wide = LocalAttention(neighbours=120, window=None, reach=1e6)
    torch.testing.assert_close(
        answer(memory, whole, known, x), answer(memory, wide, known, x), rtol=0, atol=1e-8
    )
    corrupted, evidence = denoised()
    known = memory.search(evidence, 80)
    x = draws(*x.shape).abs()
    pulled = LocalAttention(neighbours=60, window=None, pull=2.0)
    wide = LocalAttention(neighbours=60, window=None, pull=2.0, reach=1e6)
    torch.testing.assert_close(
        answer(memory, pulled, known, x), answer(memory, wide, known, x), rtol=0, atol=1e-8
    )


@pytest.mark.parametrize("coupled", [False, True])
def test_a_token_by_its_formula(coupled: bool) -> None:
    """One token, written down: scores with reach and pull, softmax over the K best, gain, shrinkage.

    Coupled, the response heeds the state of other tokens; its own components are 20 to 23.
    """
    memory = stored()
    _, evidence = denoised(1)
    known = memory.search(evidence, memory.count)
    x = draws(1, TOKENS, PATCH**2, seed=4).abs()
    attention = LocalAttention(
        neighbours=50, inverse_temperature=0.3, relative=False, reach=2.0, pull=1.5, softening=0.2,
        shrinkage=0.1, window=None, coupled=coupled,
    )  # fmt: skip
    found = answer(memory, attention, known, x)[0, 5]
    m = memory.levels[0].double() / 255
    field, precision, state = evidence.field[0], evidence.precision[0], x.flatten()
    w = torch.exp(-DISTANCES[5].double() / (2 * 2.0**2))
    scores = (w * (field * m - precision * m * m / 2 + 1.5 * (state * m - m * m / 2))).sum(1)
    best = scores.topk(50)
    beta = torch.softmax(0.3 * best.values, 0)
    near = m[best.indices]
    mean = beta @ near
    covariance = (near - mean).T @ (beta[:, None] * (near - mean)) + 0.1 * m.T.cov(correction=0)
    pull = torch.full_like(precision, 1.5 * coupled)
    pull[20:24] = 0
    gain = w * (precision + pull) / (1 + 0.2 * w * (precision + pull))
    known_as = (field + pull * state) / (precision + pull)
    shift = torch.linalg.solve(covariance + torch.diag(1 / gain), known_as - mean)
    torch.testing.assert_close(found, (mean + covariance @ shift)[20:24], rtol=0, atol=1e-9)


@pytest.mark.parametrize("reach", [None, 2.0])
def test_where_nothing_is_known_the_answer_is_the_mean(reach: float | None) -> None:
    """All scores are equal then, and a top K of them is whichever K come first."""
    corrupted, _ = masked(2)
    memory, pixels = stored(("shift 1",)), to_patches(corrupted.original, patch=PATCH).flatten(1)
    visible = torch.zeros_like(pixels, dtype=torch.bool)
    visible[1, :8] = True
    known = memory.search(seen(pixels, visible, variance=1e-3), 100)
    x = torch.zeros(2, TOKENS, PATCH**2, dtype=torch.float64)
    found = answer(memory, LocalAttention(neighbours=60, reach=reach), known, x)
    mean = SPLITS.train.double().flatten(2).mean(0) / 255
    expected = to_patches(mean.view(1, 1, SIDE, SIDE), patch=PATCH)[0]
    torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-12)
    assert (found[1] - expected).abs().max() > 0.1


def test_relative_temperature_is_in_units_of_the_spread() -> None:
    """beta depends on (a - max) / (max - K-th): scores that are scaled and moved attend alike."""
    attention = LocalAttention(neighbours=6, inverse_temperature=4.0)
    scores = draws(2, 9)
    beta, places = attention.separate(scores)
    moved, same = attention.separate(7 * scores - 3)
    torch.testing.assert_close(beta, moved)
    assert torch.equal(places, same)
    best = scores.topk(6).values
    expected = torch.softmax(4 * (best - best[:, :1]) / (best[:, :1] - best[:, -1:]), 1)
    torch.testing.assert_close(beta.sort(descending=True).values, expected)
    equal, _ = attention.separate(torch.zeros(1, 9))
    torch.testing.assert_close(equal, torch.full((1, 6), 1 / 6))


def test_the_search_finds_the_most_likely_patterns() -> None:
    """By exact log-likelihoods; and copies are looked at of those alone."""
    memory = stored(("flip",))
    _, evidence = denoised(3)
    found = memory.search(evidence, 10)
    m = memory.levels[0].double() / 255
    exact = (evidence.field[:, None] * m - evidence.precision[:, None] * m * m / 2).sum(-1)
    assert torch.equal(found.patterns.sort(1).values, exact.topk(10).indices.sort(1).values)
    rows = memory.with_copies(found.patterns[0])
    assert rows.tolist() == [*found.patterns[0].tolist(), *(300 - 64 + found.patterns[0]).tolist()]
    z, w = draws(64), draws(64, 2, seed=1).square()
    both = memory.levels.flatten(0, 1)[rows].double() / 255
    expected = -(w.T[:, None] * (both - z) ** 2).sum(-1) / 2
    torch.testing.assert_close(memory.scores(rows, z, w), expected, rtol=1e-12, atol=1e-12)


def test_images_do_not_depend_on_their_batch_nor_tokens_on_what_else_is_asked() -> None:
    """Bit for bit: an image alone is answered as among others."""
    memory = stored(("shift 1",))
    corrupted, evidence = masked()
    x = to_patches(corrupted.corrupted, patch=PATCH)
    attention = LocalAttention(neighbours=100, reach=3.0, window=24)
    together = answer(memory, attention, memory.search(evidence, 60, asked=corrupted.mask), x)
    assert corrupted.mask is not None
    alone = memory.search(evidence.of(torch.tensor([3])), 60, asked=corrupted.mask[3:4])
    assert torch.equal(answer(memory, attention, alone, x[3:4])[0], together[3])
    assert torch.equal(together[~corrupted.mask], x[~corrupted.mask])


def test_float32_is_close_to_float64() -> None:
    """The error of float32, as docs/beyond.md states it: below 2e-4 of a pixel under a ridge of 0.001."""
    memory = stored(("shift 1",))
    for make, attention in (
        (masked, LocalAttention(neighbours=200, reach=3.0)),
        (denoised, LocalAttention(neighbours=200, reach=3.0, pull=3.0)),
    ):
        answers = []
        for dtype in (torch.float32, torch.float64):
            corrupted, evidence = make(20, dtype=dtype)
            x = to_patches(corrupted.corrupted, patch=PATCH)
            known = memory.search(evidence, memory.count, asked=corrupted.mask)
            answers.append(answer(memory, attention, known, x).double())
        assert float((answers[0] - answers[1]).abs().max()) < 2e-4


def test_a_mask_is_answered_in_one_iteration_and_noise_settles() -> None:
    """`run` drives a memory like an energy: hidden tokens ignore the state, and are done at t = 1."""
    memory = stored()
    corrupted, evidence = masked()
    known = memory.search(evidence, 60, asked=corrupted.mask)
    system = LocalLinearMemory(
        memory, LocalAttention(neighbours=50, reach=3.0), squared_distances=DISTANCES
    )
    x = to_patches(corrupted.corrupted, patch=PATCH)
    trajectory = run(
        system, x, 5, map=MeanField(), order=Synchronous(), evidence=known, record=lambda t, x: x
    )
    assert trajectory.stop is Stop.CONVERGED
    assert trajectory.steps == 2
    assert torch.equal(trajectory.records[1], trajectory.records[2])
    _, evidence = denoised()
    # with fewer neighbours than patterns the K-th may change for ever
    soft = LocalAttention(neighbours=200, inverse_temperature=0.1, relative=False, pull=2.0)
    pulled = LocalLinearMemory(memory, soft, squared_distances=DISTANCES)
    start = torch.zeros_like(x)
    trajectory = run(
        pulled, start, 60, map=MeanField(), order=Synchronous(), evidence=memory.search(evidence, 200)
    )
    assert trajectory.stop is Stop.CONVERGED
    hotter = pulled.at(1.0)
    assert hotter.attention.inverse_temperature == 1.0
    assert hotter.patterns is memory


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"neighbours": 0}, "neighbours is 0; use 1 or more"),
        ({"window": 0}, "window is 0"),
        ({"inverse_temperature": -1.0}, "inverse_temperature is -1"),
        ({"pull": math.nan}, "pull is nan"),
        ({"shrinkage": math.inf}, "shrinkage is inf"),
        ({"softening": -0.1}, "softening is -0.1"),
        ({"reach": 0.0}, "reach is 0.0 pixels"),
        ({"coupled": True}, "coupled needs a reach"),
    ],
)
def test_values_out_of_range(values: dict[str, float], words: str) -> None:
    """Each is refused with its name and what is allowed."""
    with pytest.raises(ValueError, match=words):
        LocalAttention(**values)  # type: ignore[arg-type]


def test_refusals() -> None:
    """Shapes that do not fit, an empty memory, more than there is."""
    with pytest.raises(ValueError, match="none of them 0"):
        PatternMemory(torch.zeros(1, 0, 64, dtype=torch.uint8), tokens=16)
    with pytest.raises(ValueError, match="multiple of the 15 tokens"):
        PatternMemory(torch.zeros(1, 3, 64, dtype=torch.uint8), tokens=15)
    with pytest.raises(ValueError, match="not finite"):
        PatternMemory(torch.full((1, 3, 64), torch.nan), tokens=16)
    memory = stored(("flip",))
    _, evidence = denoised(2)
    with pytest.raises(ValueError, match="236 patterns with 1 copies of each, 472 in all"):
        LocalLinearMemory(memory, LocalAttention(neighbours=473), squared_distances=DISTANCES)
    with pytest.raises(ValueError, match=r"expected \(N, P\) = \(16, 64\)"):
        LocalLinearMemory(memory, LocalAttention(neighbours=9), squared_distances=DISTANCES[:3])
    with pytest.raises(ValueError, match="237 candidates were asked for"):
        memory.search(evidence, 237)
    with pytest.raises(ValueError, match="the evidence has 63 components"):
        memory.search(PixelEvidence(evidence.field[:, 1:], evidence.precision[:, 1:]), 5)
    with pytest.raises(ValueError, match="the state is"):
        answer(memory, LocalAttention(neighbours=9), memory.search(evidence, 5), torch.zeros(2, 16, 3))
