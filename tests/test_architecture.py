"""The architecture, read from the source: who may import whom, and where autograd may run."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "attractor"
SOURCES = sorted(PACKAGE.rglob("*.py"))
ENTRIES = [path for name in ("train.py", "evaluate.py") for path in ROOT.glob(name)]

# What each folder may import, beside the standard library and itself.
ALLOWED = {
    "physics": {"torch"},
    "images": {"torch", "torchvision", "sklearn", "numpy"},
    "baselines": {"torch", "sklearn", "numpy", "attractor.physics", "attractor.images"},
    "theory": {"torch", "sklearn", "numpy", "attractor.physics", "attractor.images"},
}
# Fused kernels, which are imported when they are chosen, may import the library that compiles them.
COMPILERS = {"simd.py": "llvmlite", "compiled.py": "llvmlite"} | dict.fromkeys(
    ("cuda.py", "cuda_lanes.py", "cuda_source.py", "cuda_tiles.py"), "triton"
)
LAB_ONLY = {"hydra", "omegaconf", "wandb", "matplotlib", "tqdm"}


def _folder(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0]


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _imports(path: Path) -> Iterator[str]:
    """The absolute module of every import of a file, wherever it stands."""
    here = path.parent.relative_to(ROOT).parts
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            above = here[: len(here) - node.level + 1] if node.level else ()
            module = ".".join((*above, *([node.module] if node.module else [])))
            # `from attractor import lab`, `from attractor.lab import show` name the folder in the alias
            named = module in ("attractor", "attractor.lab")
            names = [alias.name for alias in node.names] if named else [""]
            for name in names:
                yield f"{module}.{name}".rstrip(".")


def _short(module: str) -> str:
    """attractor.images.patches -> attractor.images; torch.nn -> torch."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "attractor" else parts[0]


def test_there_is_something_to_test() -> None:
    """A moved package would make every test below pass on nothing."""
    assert len(SOURCES) > 20
    assert {_folder(path) for path in SOURCES} >= {"physics", "images", "baselines", "lab"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    """physics <- images, baselines, theory <- lab: an arrow back makes the physics unusable alone."""
    folder = _folder(path)
    if folder in ("lab", "studies"):
        return
    allowed = ALLOWED.get(folder, set()) | {f"attractor.{folder}"}
    if path.parent.name == "kernels" and path.name in COMPILERS:
        allowed.add(COMPILERS[path.name])
    for module in _imports(path):
        short = _short(module)
        if short in sys.stdlib_module_names:
            continue
        assert short in allowed, f"{path.relative_to(ROOT)} imports {module}; {folder} may use {allowed}"
        assert short not in LAB_ONLY


# From the ground up: a module imports from its own floor and from those below it. What is not named here is
# held by ALLOWED.
FLOORS = (
    "attractor.lab.errors",
    "attractor.lab.config",
    "attractor.lab.experiment",
    "attractor.lab.run",
    "attractor.lab.show",
    "attractor.lab.sweep",
    "attractor.lab.collect",
    "attractor.lab.entry",
    "attractor.studies",
)


def _floor(module: str) -> int:
    """The number of its floor; -1 below all of them."""
    floors = [i for i, name in enumerate(FLOORS) if module == name or module.startswith(f"{name}.")]
    return floors[0] if floors else -1


def _module(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_floors_of_the_lab_import_downwards(path: Path) -> None:
    """config <- experiment <- run <- show <- sweep <- studies: an arrow back makes a circle."""
    here = _floor(_module(path))
    for module in _imports(path):
        if here >= 0:
            assert _floor(module) <= here, f"{path.relative_to(ROOT)} imports {module}, which is above it"


def test_the_test_of_floors_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every spelling of an import from a floor above is seen."""
    module = sys.modules[__name__]
    run = tmp_path / "attractor" / "lab" / "run"
    run.mkdir(parents=True)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "PACKAGE", tmp_path / "attractor")
    path = run / "bad.py"
    for line in (
        "from attractor.lab.show import terminal",
        "from attractor.lab import show",
        "from attractor import studies",
        "import attractor.lab.sweep.jobs",
        "from ..show import terminal",
    ):
        path.write_text(line)
        with pytest.raises(AssertionError, match="which is above it"):
            test_floors_of_the_lab_import_downwards(path)
    path.write_text("from attractor.lab.config import schema\nfrom attractor.lab.run import files\n")
    test_floors_of_the_lab_import_downwards(path)


# What may be imported inside a function: what takes seconds or may be missing, and what needs that.
LATE = {"wandb", "sklearn.datasets", "torchvision.datasets", "attractor.physics.kernels"}
LATE |= {f"attractor.{name}" for name in ("lab.show.drawing", "lab.show.figures", "lab.sweep.figures")}
LATE |= {
    f"attractor.studies.{name}" for name in ("paper.figures", "capacity.figures", "transients.figures")
}


@pytest.mark.parametrize("path", [*SOURCES, *ENTRIES], ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_stand_at_the_top(path: Path) -> None:
    """An import inside a function hides a circle, unless it is one of a slow or optional library."""
    tree = _tree(path)
    for node in ast.walk(tree):
        if node in tree.body or not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
        for alias in node.names:
            name = f"{module}.{alias.name}".strip(".")
            assert any(name == late or name.startswith(f"{late}.") for late in LATE), f"{path}: {name}"


def test_the_import_test_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every spelling of an import of lab from physics is seen."""
    module = sys.modules[__name__]
    physics = tmp_path / "attractor" / "physics"
    physics.mkdir(parents=True)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "PACKAGE", tmp_path / "attractor")
    for i, line in enumerate(
        (
            "import attractor.lab.config.schema",
            "from attractor import lab",
            "from attractor.lab import build",
            "from ..lab import build",
            "from .. import lab",
            "def f():\n    import wandb.sdk",
        )
    ):
        path = physics / f"bad{i}.py"
        path.write_text(line)
        with pytest.raises(AssertionError, match="physics may use"):
            test_imports_point_one_way(path)
    good = physics / "good.py"
    good.write_text(
        "import math\nimport torch.nn\nfrom .bessel import x\nfrom attractor.physics import y\n"
    )
    test_imports_point_one_way(good)


def test_physics_needs_torch_alone() -> None:
    """`import attractor.physics` in a fresh interpreter loads no tracking, plotting or data library."""
    heavy = sorted(LAB_ONLY - {"tqdm"} | {"torchvision", "sklearn", "llvmlite", "triton"})
    code = (
        "import sys, attractor.physics\n"
        f"print([name for name in {heavy} if name in sys.modules])\n"
        "print([name for name in sys.modules if name.startswith('attractor.')\n"
        "       and not name.startswith('attractor.physics')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]


def _autograd_calls(path: Path) -> list[int]:
    """Lines that run autograd: x.backward(...), torch.autograd..., torch.func.grad and its kin."""
    lines = []
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Attribute) and node.attr in ("backward", "autograd", "vjp", "jacrev"):
            lines.append(node.lineno)
        if isinstance(node, ast.Attribute | ast.Name) and ast.unparse(node) == "torch.func":
            lines.append(node.lineno)
        if isinstance(node, ast.ImportFrom | ast.Import):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            if any(name in ("autograd", "torch.autograd", "torch.func") for name in names):
                lines.append(node.lineno)
    return lines


@pytest.mark.parametrize(
    "path",
    [path for path in [*SOURCES, *ENTRIES] if not path.is_relative_to(PACKAGE / "baselines")],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_no_backpropagation_outside_the_baselines(path: Path) -> None:
    """The claim of the project in one line: nothing but the baselines calls backward or autograd.grad."""
    assert not _autograd_calls(path)


@pytest.mark.parametrize(
    "line",
    [
        "loss.backward()",
        "(a + b).sum().backward(retain_graph=True)",
        "torch.autograd.grad(y, x)",
        "import torch.autograd",
        "from torch import autograd",
        "from torch.autograd import grad",
        "torch.func.grad(f)(x)",
        "from torch.func import grad",
    ],
)
def test_the_backpropagation_test_can_fail(tmp_path: Path, line: str) -> None:
    """Every way to autograd is seen; a test that sees none would pass for ever."""
    path = tmp_path / "bad.py"
    path.write_text(line)
    assert _autograd_calls(path) == [1]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_readable(path: Path) -> None:
    """A file of more than 300 lines holds two concepts."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300
