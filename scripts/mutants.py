"""Plant errors in the physics and the theory one by one, and require that their own tests see every one.

    uv run python scripts/mutants.py            # all; exit code 1 if one survives
    uv run python scripts/mutants.py force psi  # those whose reason contains a word

Each mutant works on its own copy of the package, put first on PYTHONPATH. Killed means that a test
failed (pytest's exit code 1); an error of collection or of import is a defect of the mutant itself.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORKERS = 2
TIMEOUT = 600  # seconds; a sampler that never accepts runs for ever

# In each copy: pytest ends with a usage error, which is no kill, unless the copy is what it imports.
GUARD = """
from pathlib import Path
import attractor.physics
import pytest
if not Path(attractor.physics.__file__).is_relative_to(Path(__file__).parent):
    raise pytest.UsageError(f"imported {attractor.physics.__file__}, not the copy")
"""


@dataclass(frozen=True)
class Mutant:
    """`old`, which must occur exactly once in attractor/`part`/`file`, becomes `new`."""

    file: str
    old: str
    new: str
    why: str
    part: str = "physics"  # tests/`part` must see it
    tests: tuple[str, ...] = ()  # or these files of it alone, so that the others need not be run

    @property
    def path(self) -> Path:
        return Path("attractor") / self.part / self.file


MUTANTS = [
    Mutant(
        "energies.py",
        "attended = attended - self._precision",
        "attended = attended + self._precision",
        "force: the penalty of an observation pushes outwards",
    ),
    Mutant(
        "measures.py",
        "shrinkage = torch.log1p(observed / eigenvalues).sum(-1)",
        "shrinkage = torch.log1p(observed * eigenvalues).sum(-1)",
        "Gaussian: det(I + p P) for det(I + p P^-1)",
    ),
    Mutant(
        "energies.py",
        "            return -log_sum / self.inverse_temperature\n\n        return self._gathered",
        "            return log_sum / self.inverse_temperature\n\n        return self._gathered",
        "energy: lost minus sign",
    ),
    Mutant(
        "energies.py",
        "return attended / self.inverse_temperature",
        "return attended",
        "force: lost lambda, f + field and not f + field/lambda",
    ),
    Mutant(
        "kernels/eager.py",
        "attention, total = softmax_and_log_sum(block.scores())",
        "attention, total = softmax_and_log_sum(block.log_normalisers()[0])",
        "force: gated by the prior beta, not by attention alpha",
    ),
    Mutant(
        "energies.py",
        "block.put(softmax, torch.softmax(logits(block), 1))",
        "block.put(softmax, torch.softmax(logits(block), 0))",
        "attention: softmax over rows, not over sources",
    ),
    Mutant(
        "kernels/eager.py",
        "            prior, total = softmax_and_log_sum(psi)\n            block.put(log_partition, total)",
        "            best = psi.amax(1)\n"
        "            prior, total = softmax_and_log_sum(psi)\n"
        "            block.put(log_partition, best)",
        "log p: the partition of the best source alone",
    ),
    Mutant(
        "energies.py",
        "inverse_temperature=temperature, scale=temperature, contrast=True",
        "inverse_temperature=temperature, scale=1.0, contrast=True",
        "exact rule: lost lambda",
    ),
    Mutant(
        "kernels/eager.py",
        "gain, prior.mul_(scale), dim=2)",
        "gain, posterior, dim=2)",
        "exact rule: expectation gated by alpha, not by beta",
    ),
    Mutant(
        "kernels/eager.py",
        "by_field -= self.measure",
        "by_field -= 0 * self.measure",
        "exact rule: negative phase dropped",
    ),
    Mutant(
        "kernels/eager.py",
        "by_field = posterior.mul_(scale)",
        "by_field = posterior.mul_(scale / 2 if contrast else scale)",
        "exact rule: factor 1/2 of the double sum of a symmetric J",
    ),
    Mutant(
        "energies.py",
        "scale=1.0, contrast=False",
        "scale=1.7, contrast=False",
        "positive phase: a factor too many",
    ),
    Mutant(
        "kernels/eager.py",
        "        scale = scale / len(x)\n",
        "        scale = scale / min(len(x), 2)\n",
        "positive phase: mean over the block, not over the batch",
    ),
    Mutant(
        "kernels/blocks.py",
        "field = evidence.field[images, block.start : block.stop]",
        "field = evidence.field[images, : len(block)]",
        "evidence: the field of the first rows, for every block",
    ),
    Mutant(
        "kernels/blocks.py",
        "observed = precisions[block.start : block.stop, None, None]",
        "observed = precisions[: len(block), None, None]",
        "evidence: the precision of the first rows, for every block",
    ),
    Mutant(
        "kernels/blocks.py",
        "                natural += field.permute(1, 2, 0).unsqueeze(1)",
        "                natural += inverse_temperature * field.permute(1, 2, 0).unsqueeze(1)",
        "evidence: field times lambda, as if it were a source",
    ),
    Mutant(
        "kernels/blocks.py",
        "        self.couplings.exclude(psi, self.rows)\n",
        "",
        "beta: a token may be its own source, with psi(0)",
    ),
    Mutant(
        "kernels/blocks.py",
        "        self.couplings.exclude(scores, self.rows)\n",
        "",
        "alpha: a token may be its own source, with score 0",
    ),
    Mutant(
        "couplings.py",
        "torch.bmm(weight, sources, out=field)",
        "torch.bmm(weight.transpose(1, 2), sources, out=field)",
        "fields: J_ij transposed",
    ),
    Mutant(
        "couplings.py",
        "torch.bmm(weight, sources, out=field)",
        "torch.bmm(self._couplings[:, i], sources, out=field)",
        "fields: J_ji for J_ij",
    ),
    Mutant(
        "couplings.py",
        "scores.diagonal(offset=rows.start, dim1=0, dim2=1).fill_(-torch.inf)",
        "scores.diagonal(dim1=0, dim2=1).fill_(-torch.inf)",
        "exclusion: the offset of the block is lost",
    ),
    Mutant(
        "couplings.py",
        "weight.baddbmm_(row, sources)",
        "weight.baddbmm_(row, sources, beta=0)",
        "accumulate: overwrites what earlier images gave",
    ),
    Mutant(
        "couplings.py",
        "        for i in rows:\n            weights[i - self.rows.start, i] = 0\n",
        "",
        "Hopfield: a token learns from itself",
    ),
    Mutant(
        "measures.py",
        "psi, gain = log_normaliser_and_gain(squared / self.circles, 2)",
        "psi, gain = log_normaliser_and_gain(squared, 2)",
        "circles: sqrt K lost in psi",
    ),
    Mutant(
        "measures.py",
        "return psi.sum(axis), gain / self.circles",
        "return psi.sum(axis), gain / math.sqrt(self.circles)",
        "circles: gain divided by sqrt K, not by K",
    ),
    Mutant(
        "measures.py",
        "return ((rotated * rotated * gain).sum(-1) - shrinkage) / 2, gain",
        "return (rotated * rotated * gain).sum(-1) - shrinkage / 2, gain",
        "Gaussian: psi without its 1/2",
    ),
    Mutant(
        "measures.py",
        "rotated = h.movedim(dim, -1) @ self._eigenvectors.to(h)",
        "rotated = h.movedim(dim, -1) @ self._eigenvectors.to(h).T",
        "Gaussian: transposed eigenbasis, right for P = I",
    ),
    Mutant(
        "measures.py",
        "log_ratio = -kw * proposal + a * torch.log(gw + proposal - gw * proposal)",
        "log_ratio = -kw * proposal + (a - 1) * torch.log(gw + proposal - gw * proposal)",
        "Wood's sampler: D - 2 for D - 1 in the envelope",
    ),
    Mutant(
        "bessel.py",
        "psi = torch.sub(s - shift, logarithm, alpha=order + 0.5)",
        "psi = torch.sub(s - shift, logarithm, alpha=order)",
        "float32 psi: nu for nu + 1/2",
    ),
    Mutant(
        "bessel.py",
        "r = torch.cat((s * gain, torch.ones_like(q[:1])))",
        "r = torch.cat((s * gain, torch.zeros_like(q[:1])))",
        "float32 gain: the mean at infinity has length 0, not 1",
    ),
    Mutant(
        "bessel.py",
        "denominator = squared_radius * gain + 2 * (raised + 1)",
        "denominator = squared_radius * gain + 2 * raised",
        "Bessel recursion: nu for nu + 1",
    ),
    Mutant(
        "bessel.py",
        "        - 0.5 * torch.log1p(delta / raised)\n",
        "        - 0.5 * torch.log1p(delta / (raised + 1))\n",
        "Debye expansion: psi off by a slowly growing term",
    ),
    Mutant(
        "bessel.py",
        "high = -Fraction(p, 2) - Fraction(5, 8 * (p + 3))",
        "high = -Fraction(p, 2) - Fraction(5, 8 * (p + 1))",
        "Debye polynomials: p + 1 for p + 3",
    ),
    Mutant(
        "rules.py",
        "gradient.sub_(weight[couplings.own(part)], alpha=self.decay)",
        "gradient.sub_(weight[couplings.own(part)], alpha=2 * self.decay)",
        "decay: that of |J|^2, not of |J|^2/2",
    ),
    Mutant(
        "rules.py",
        "held.to(now.device) / norms",
        "_row_norms(now) / held.to(now.device)",
        "energy descent: norm of a row inverted",
    ),
    Mutant(
        "rules.py",
        "return torch.stack([row.square().sum() for row in weight]).sqrt()",
        "return torch.stack([row.square().sum((-2, -1)).amax() for row in weight]).sqrt()",
        "energy descent: the norm of each block J_ij, not of the row J[i]",
    ),
    Mutant(
        "one_shot.py",
        "kept = row[sources] / len(sources)",
        "kept = row[sources] / (len(sources) + 1)",
        "Hebb: N sources for N - 1",
    ),
    Mutant(
        "one_shot.py",
        "scale = self.rate * energy.inverse_temperature",
        "scale = self.rate",
        "Hebb: lost lambda",
    ),
    Mutant(
        "one_shot.py",
        "solution = -torch.linalg",
        "solution = torch.linalg",
        "ridge: lost minus sign of the block inverse",
    ),
    Mutant(
        "one_shot.py",
        "couplings.couplings = (precision @ solution /",
        "couplings.couplings = (solution /",
        "ridge: lost precision P",
    ),
    Mutant(
        "kernels/eager.py",
        "                values[self.couplings.own(some)] = 0\n",
        "                pass\n",
        "eager gradient: that of the last step is not cleared",
    ),
    Mutant(
        "kernels/eager.py",
        "return 0 * total",
        "return 0 * total.nan_to_num()",
        "eager gradient: nobody is told that it is not finite",
    ),
    Mutant(
        "optimisers.py",
        "root_correction = (1 - self.beta2**t) ** 0.5",
        "root_correction = 1.0",
        "Adam: second bias correction lost",
    ),
    Mutant(
        "optimisers.py",
        "v.mul_(self.momentum).add_(g)",
        "v.mul_(self.momentum).add_(g, alpha=1 - self.momentum)",
        "momentum: an average for a sum",
    ),
    Mutant(
        "dynamics.py",
        "new = torch.lerp(new, old, self.damping)",
        "new = torch.lerp(old, new, self.damping)",
        "damping: the shares of old and new swapped",
    ),
    Mutant(
        "dynamics.py",
        "new = new / (1 + self.inertia)",
        "new = new / 1",
        "inertia: adds where it should average",
    ),
    Mutant(
        "dynamics.py",
        "new = self.map(energy, x, evidence=evidence, rows=rows) + self.inertia * old",
        "new = self.map(energy, x, evidence=evidence, rows=rows) - self.inertia * old",
        "inertia: wrong sign",
    ),
    Mutant(
        "dynamics.py",
        "new = torch.where(clamped[:, here, None], old, new)",
        "new = torch.where(clamped[:, here, None], new, old)",
        "clamping: inverted, the masked tokens stay",
    ),
    Mutant(
        "dynamics.py",
        "records = [record(0, x0)] if record else []",
        "records = []",
        "record: curves start at t = 1, off by one",
    ),
    Mutant(
        "dynamics.py",
        "before, now = now, x\n",
        "before, now = x, x\n",
        "stop: a fixed point is taken for nothing but itself, cycles are missed",
    ),
    Mutant(
        "dynamics.py",
        "moving = moving[~arrived]",
        "moving = moving[arrived]",
        "iterate: those that arrived go on, the others rest",
    ),
    Mutant(
        "dynamics.py",
        "            if dynamics.map.deterministic:\n",
        "            if True:\n",
        "iterate: chains that moved little are put to rest",
    ),
    Mutant(
        "dynamics.py",
        "energy = energy.at(self.inverse_temperature)",
        "energy = energy.at(self.inverse_temperature * energy.inverse_temperature)",
        "temperature of retrieval: multiplied, not replaced",
    ),
    Mutant(
        "rules.py",
        "gradient *= couplings.tokens / self.rows_per_step",
        "pass",
        "drawn rows: N/R lost, the gradient is biased",
    ),
    Mutant(
        "kernels/cpu_parts.py",
        "emit.splat(-(order + 0.5))",
        "emit.splat(-order)",
        "fused psi: nu for nu + 1/2",
    ),
    Mutant(
        "kernels/cpu_source.py",
        "values = [emit.mul(posterior, component) for component in x]",
        "values = [emit.mul(posterior, component) for component in h]",
        "fused rule: the field for the token",
    ),
    Mutant(
        "kernels/cpu_source.py",
        'icmp_signed("<", rows.begin, first_images)',
        'icmp_signed("<", I64(0), first_images)',
        "fused rule: every block of images forgets the one before",
    ),
    Mutant(
        "kernels/cpu_source.py",
        "emit.store(emit.fma(values, emit.splat(0.0), emit.load(spoiled)), spoiled)",
        "pass",
        "fused rule: nobody is told that the gradient is not finite",
    ),
    Mutant(
        "kernels/cpu_adam.py",
        "return bool(sums.sum().isfinite())",
        "return bool(sums[:-1].sum().isfinite())",
        "fused Adam: the last weights may be infinite",
    ),
    Mutant(
        "kernels/threads.py",
        "slice(count * t // threads, count * (t + 1) // threads)",
        "slice(count // threads * t, count // threads * (t + 1))",
        "threads: the rest is done by nobody",
    ),
    Mutant(
        "kernels/cpu_adam.py",
        "body.in_parallel([call(part, own) for part, own in zip(parts, sums[:-1], strict=True)])",
        "body.in_parallel([call(parts[0], sums[0])])",
        "fused Adam: only the first thread works",
    ),
    Mutant(
        "kernels/compiled.py",
        'build.icmp_signed("<", following, count), body, end',
        'build.icmp_signed(">", following, count), body, end',
        "threads: with fewer threads than calls some are not done",
    ),
    Mutant(
        "kernels/simd.py",
        "I32(0x8040)",
        "I32(0)",
        "fused kernel: denormal numbers, at a hundred cycles each",
    ),
    Mutant(
        "rules.py",
        'if not 0 < norm < float("inf"):',
        'if not 0 <= norm < float("inf"):',
        "energy descent: a row of norm 0 becomes NaN",
    ),
    Mutant(
        "kernels/cpu_source.py",
        "emit.store(emit.larger(value, emit.load(highest)), highest)",
        "pass",
        "fused softmax: without its maximum",
    ),
    Mutant(
        "kernels/cpu_source.py",
        "negative = emit.sub(zero, emit.splat(scale))",
        "negative = emit.splat(scale)",
        "fused rule: expectation added, not subtracted",
    ),
    Mutant(
        "kernels/simd.py",
        "partner.append((lane ^ span) + second)",
        "partner.append(lane + second)",
        "fused gradient: a lane is summed with itself",
    ),
    Mutant(
        "kernels/cpu_adam.py",
        "root = emit.fma(emit.sqrt(square), correction, epsilon)",
        "root = emit.add(emit.sqrt(square), epsilon)",
        "fused Adam: second bias correction lost",
    ),
    Mutant(
        "processes.py",
        "start, stop = (ROW_GRID * (cells * r // self.count) for r in (rank, rank + 1))",
        "start, stop = (tokens * r // self.count for r in (rank, rank + 1))",
        "ranks: rows cut off the grid, and bits differ",
    ),
]


MUTANTS += [
    Mutant(file, old, new, f"theory: {why}", part)
    for part, file, old, new, why in (
        (
            "physics",
            "spectrum.py",
            "self.values.rsqrt()",
            "1 / self.values",
            "whitening by the inverse, not its root",
        ),
        (
            "physics",
            "spectrum.py",
            "kept = values > rounding * scale",
            "kept = values > 0",
            "rounding is inverted",
        ),
        (
            "theory",
            "whitened.py",
            "blocks @ (right if transposed else right.mT)",
            "blocks @ right",
            "J = L A L, a transpose lost",
        ),
        (
            "theory",
            "ols_attention.py",
            "found.vectors * ((found.values + ridge).sqrt() / found.values)",
            "whitening",
            "with a ridge L in all three places shrinks twice",
        ),
        (
            "theory",
            "ols_attention.py",
            "square + (fourth - square) / context",
            "square",
            "a short context asks for no ridge",
        ),
        (
            "theory",
            "feature_maps.py",
            "(math.factorial(self.degree) / repeats).sqrt()",
            "(math.factorial(self.degree) / repeats)",
            "multinomial weight without its root",
        ),
        (
            "theory",
            "feature_maps.py",
            "(scaled * scaled).sum(-1, keepdim=True) / 2",
            "(scaled * scaled).sum(-1, keepdim=True)",
            "random features of another kernel",
        ),
        (
            "theory",
            "fast_weights.py",
            "return (asked @ phi.mT).tril()",
            "return (asked @ phi.mT).tril(-1)",
            "token t is read before it is written",
        ),
        (
            "theory",
            "fast_weights.py",
            "kept = asked if gates is None else asked * gates.cumprod(1)",
            "kept = asked",
            "what came before a chunk does not fade",
        ),
        ("theory", "sign_network.py", "memory.fill_diagonal_(0)", "memory", "spins that hold themselves"),
        (
            "theory",
            "log_normaliser.py",
            "(self.points.attention(eta) * self._quadratics(eta)).sum(",
            "(self.points.log_weights.exp() * self._quadratics(eta)).sum(",
            "a bound by weights that ignore eta",
        ),
        (
            "theory",
            "log_normaliser.py",
            "return -per_draw * shift, per_draw",
            "return per_draw * shift, per_draw",
            "bias away from the mean",
        ),
        ("theory", "renormalisation.py", "found.power(-0.5)", "found.power(-1)", "renormalised twice"),
        (
            "theory",
            "query_key.py",
            "coefficients @ blocks[i, others].mT",
            "coefficients @ blocks[i, others]",
            "Schur complement without its transpose",
        ),
        ("baselines", "similarities.py", "alpha=-0.5", "alpha=-1.0", "the fine for long keys is doubled"),
        (
            "baselines",
            "separations.py",
            "return scores**self.power",
            "return scores.abs()**self.power",
            "odd powers lose the sign",
        ),
        (
            "baselines",
            "universal.py",
            "return total.div_(weights.sum(-1, keepdim=True)) if normalised else total",
            "return total",
            "a sum of images for their mean",
        ),
    )
]


MUTANTS += [
    Mutant(file, old, new, f"memory: {why}", tests=("test_local_linear.py", "test_evidence.py"))
    for file, old, new, why in (
        (
            "evidence.py",
            "curvature = -4 * (at_0 - 2 * at_half + at_1)",
            "curvature = -2 * (at_0 - 2 * at_half + at_1)",
            "the parabola of clipped noise is too flat",
        ),
        (
            "evidence.py",
            "torch.where(high, curvature - slope, field)",
            "torch.where(high, slope, field)",
            "a pixel clipped at 1 is told as one clipped at 0",
        ),
        (
            "local_linear.py",
            "mul_(attention.sqrt().unsqueeze(-1))",
            "mul_(attention.unsqueeze(-1))",
            "C is weighted by beta squared",
        ),
        (
            "local_linear.py",
            "own = covariance[:, -outputs:] * root.unsqueeze(1)",
            "own = covariance[:, -outputs:].clone()",
            "a gain is lost in the P x P form",
        ),
        (
            "local_linear.py",
            "pulled = deviations * gain.unsqueeze(1)  # X D",
            "pulled = deviations * gain.sqrt().unsqueeze(1)",
            "the K x K form has the root of the gain",
        ),
        (
            "local_linear.py",
            "torch.exp(squared_distances / (-2 * self.reach**2))",
            "torch.exp(squared_distances / -(self.reach**2))",
            "relevance falls twice as fast as rho says",
        ),
        (
            "local_linear.py",
            "best = best / spread.clamp_min(torch.finfo(best.dtype).tiny)",
            "best = best * spread",
            "a relative temperature is multiplied and not divided",
        ),
        (
            "local_linear_memory.py",
            "pulled = field + pull * state if pull else field",
            "pulled = field + state if pull else field",
            "the state pulls with 1 and not kappa",
        ),
        (
            "local_linear_memory.py",
            "gain = attention.gain(relevance * precision)",
            "gain = attention.gain(precision)",
            "far pixels answer as near ones",
        ),
        (
            "local_linear_memory.py",
            "precision = torch.where(own, precision, known.confidence)",
            "precision = known.confidence.expand_as(own)",
            "a coupled token confirms itself",
        ),
        (
            "local_linear_memory.py",
            "observed = torch.where(own, observed, known.target)",
            "observed = torch.where(own, observed, known.state)",
            "a coupled token forgets what is known of the others",
        ),
        (
            "local_linear_memory.py",
            "distance = distance.masked_fill(~observed, torch.inf)",
            "distance = distance.clone()",
            "hidden tokens are taken for windows",
        ),
        (
            "pattern_memory.py",
            "part.addmm_(precision, m.square_().T, alpha=-0.5)",
            "part.addmm_(precision, m.square_().T, alpha=-1)",
            "the search has twice the square of a pattern",
        ),
        (
            "pattern_memory.py",
            "scores.T.contiguous().mul_(-0.5 * self.unit**2)",
            "scores.T.contiguous().mul_(-0.5 * self.unit)",
            "exact scores in the wrong unit",
        ),
        (
            "pattern_memory.py",
            "covariance.addmm_(centred.T, centred, alpha=1 / self.count)",
            "covariance.addmm_(centred.T, centred, alpha=1 / (self.count - 1))",
            "the covariance of the regression limit",
        ),
    )
]
MUTANTS += [
    Mutant(
        "recollection_choice.py",
        old,
        new,
        f"memory: {why}",
        part="lab/experiment",
        tests=("test_recollection.py",),
    )
    for old, new, why in (
        (
            "gram.diagonal().add_(_RIDGE)",
            "gram.diagonal().add_(1e-9)",
            "a readout of large coefficients that cancel on the images of its choice",
        ),
        (
            "missing = features.T @ (corrupted.original[counted].double() - values[0]) / len(features)",
            "missing = features.T @ (corrupted.original[counted].double() - values[-1]) / len(features)",
            "a readout corrects another head than the one that it starts from",
        ),
        (
            "errors[~part] = corrupted.squared_error(pixels).double()[~part]",
            "errors[part] = corrupted.squared_error(pixels).double()[part]",
            "a readout is judged by the images to which it was fitted",
        ),
    )
]


def plant(mutant: Mutant) -> str:
    """The mutated text of the file. Raises ValueError unless the old text occurs exactly once."""
    text = (ROOT / mutant.path).read_text(encoding="utf-8")
    found = text.count(mutant.old)
    if found != 1:
        raise ValueError(f"{mutant.file}: {mutant.old!r} occurs {found} times, expected 1; {mutant.why}")
    return text.replace(mutant.old, mutant.new)


def judge(mutant: Mutant | None, part: str, tests: tuple[str, ...]) -> tuple[str, float]:
    """'passed', 'killed by TEST' or 'defect ...': tests/`part` on a copy with the mutant, if any.

    tests: files of it; all where there are none.
    """
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy = Path(folder)
        ignore = shutil.ignore_patterns("__pycache__")
        for name in ("attractor", "conf", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=ignore)
        for name in ("pyproject.toml", "train.py", "evaluate.py"):
            shutil.copy(ROOT / name, copy)
        (copy / "conftest.py").write_text(GUARD, encoding="utf-8")
        folder_of_tests = copy / "tests" / part
        files = [folder_of_tests / name for name in tests] or sorted(folder_of_tests.glob("test_*.py"))
        if mutant is not None:
            (copy / mutant.path).write_text(plant(mutant), encoding="utf-8")
            # the tests of the mutated file first: most mutants die there
            own = {f"test_{Path(mutant.file).stem}"}
            if mutant.file.startswith("kernels/"):
                own |= {"test_kernels", "test_threads", "test_energies"}
            files.sort(key=lambda path: (path.stem not in own, path.name))
        verdict = _run(copy, files)
    return verdict, time.perf_counter() - started


def _run(copy: Path, files: list[Path]) -> str:
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    command = [sys.executable, "-P", "-m", "pytest", "-x", "-q", "-n0", "-W", "error"]
    command += ["-p", "no:cacheprovider"]
    try:
        done = subprocess.run(
            [*command, *map(str, files)],
            cwd=copy, env=environment, capture_output=True, text=True, check=False, timeout=TIMEOUT,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"defect: no verdict within {TIMEOUT} s"
    if done.returncode == 0:
        return "passed"
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED ")]
    if done.returncode == 1 and failed and "ERROR " not in done.stdout:
        return "killed by " + failed[0].removeprefix("FAILED ").split(" - ")[0].split("/")[-1]
    return f"defect: pytest exit code {done.returncode}\n{done.stdout[-1500:]}{done.stderr[-500:]}"


def main(words: list[str]) -> int:
    """Judge the clean copy, then every mutant; 0 only if the one passes and the others are killed."""
    mutants = [m for m in MUTANTS if not words or any(word in m.why for word in words)]
    for mutant in mutants:
        plant(mutant)
    if not mutants:
        print(f"no mutant mentions any of {words}")
        return 1
    for part, tests in dict.fromkeys((mutant.part, mutant.tests) for mutant in mutants):
        verdict, seconds = judge(None, part, tests)
        names = ", ".join(tests) or "all"
        print(f"unmutated copy, tests/{part}, {names}: {verdict} ({seconds:.0f} s)", flush=True)
        if verdict != "passed":
            return 1
    bad = 0
    with ThreadPoolExecutor(WORKERS) as pool:
        for mutant, (verdict, seconds) in zip(
            mutants, pool.map(lambda m: judge(m, m.part, m.tests), mutants), strict=True
        ):
            verdict = "SURVIVED" if verdict == "passed" else verdict
            bad += not verdict.startswith("killed")
            print(f"{seconds:5.0f} s  {mutant.file:18} {mutant.why:70} {verdict}", flush=True)
    print(f"{len(mutants) - bad} of {len(mutants)} mutants killed")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
