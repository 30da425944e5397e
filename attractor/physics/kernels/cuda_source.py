"""What the Triton kernels of `cuda_lanes` and `cuda_tiles` share, and Adam in one pass over memory."""

# Triton's language has no types, and it compiles no annotations but its own.
# mypy: ignore-errors

import triton
import triton.language as tl

# Sizes must not turn into compile-time facts: where N is divisible by 16 Triton would give one thread four
# neighbouring sources, and their couplings do not fit its registers.
SIZES = ["images", "tokens", "sources", "count", "first"]


@triton.jit
def psi_and_gain(k2, FIT: tl.constexpr):
    """psi(k) and psi'(k)/k of a sphere, as `bessel._single`. FIT: a, nu + 1/2, and the two polynomials."""
    a: tl.constexpr = FIT[0]
    q_of: tl.constexpr = FIT[2]
    r_of: tl.constexpr = FIT[3]
    last: tl.constexpr = len(FIT[2]) - 1
    squared = k2 + a * a
    inverse = tl.rsqrt(squared)
    s = squared * inverse
    q = inverse * q_of[last] + q_of[last - 1]
    r = inverse * r_of[last] + r_of[last - 1]
    for k in tl.static_range(2, last + 1):
        q = q * inverse + q_of[last - k]
        r = r * inverse + r_of[last - k]
    logarithm = tl.log((s + a) * (0.5 / a))
    return (s - a) - FIT[1] * logarithm + q, inverse * r


@triton.jit
def online(highest, total, logit):
    """One more term of sum exp(logit - highest): the new state, and the factors of the old and new terms.

    `highest` starts finite and never becomes NaN, so a NaN stays in the totals of its own image.
    """
    gap = logit - highest
    lower = tl.exp(-tl.abs(gap))
    raised = gap > 0
    keep = tl.where(raised, lower, 1.0)
    weight = tl.where(raised, 1.0, lower)
    return tl.where(raised, logit, highest), total * keep + weight, keep, weight


@triton.jit
def source(neighbours, i, s, sources, DENSE: tl.constexpr):
    """Token j of source s (0 where there is none), and whether there is one."""
    if DENSE:
        j = s
        there = (s != i) & (s < sources)
    else:
        j = tl.load(neighbours + i * sources + s, mask=s < sources, other=-1)
        there = j >= 0
    return tl.where(there, j, 0), there


@triton.jit(do_not_specialize=["size"])
def adam_step(
    weight,
    gradient,
    mean,
    square,
    size,
    step_size,
    root_correction,
    toward,  # 1 - beta1
    beta2,
    toward2,  # 1 - beta2
    epsilon,
    BLOCK: tl.constexpr,
):
    """See `cuda.adam`."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = place < size
    g = tl.load(gradient + place, mask=there)
    m = tl.load(mean + place, mask=there)
    # the two forms of torch.lerp
    m = tl.where(toward < 0.5, m + toward * (g - m), g - (g - m) * (1 - toward))
    v = tl.load(square + place, mask=there) * beta2 + toward2 * g * g
    step = step_size * m / (tl.sqrt_rn(v) / root_correction + epsilon)
    tl.store(mean + place, m, mask=there)
    tl.store(square + place, v, mask=there)
    tl.store(weight + place, tl.load(weight + place, mask=there) + step, mask=there)
