"""The package keeps its shape: who may import whom, what is loaded when, and that public names are there."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import foregate

ROOT = Path(foregate.__file__).parent
LEAVES = {"arrays", "errors", "spec", "components", "cooccurrence", "reuse", "sizes"}
# Each layer may import itself and those below it.
ORDER = [
    LEAVES,
    {"models", "adapters"},
    {"store"},
    {"traces"},
    {"splits", "history"},
    {"predictors"},
    {"memory"},
    {"evaluation", "description", "usage", "moments"},
]
HEAVY = {
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "datasets",
    "plotly",
    "xgboost",
    "optuna",
    "pandas",
    "accelerate",
    "onnx",
    "onnxruntime",
}


FILES = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py"))


def parsed(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text())


def imported(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
    return found


def part(name: str) -> str:
    return name.removeprefix("foregate.").split(".", maxsplit=1)[0]


@pytest.mark.parametrize("file", FILES)
def test_imports_point_one_way(file: str) -> None:
    here = file.removesuffix(".py").split("/")[0]
    used = {part(name) for name in imported(parsed(file)) if name.startswith("foregate.")}
    if here not in ("cli", "__init__"):
        assert "cli" not in used
    allowed: set[str] = set()
    for layer in ORDER:
        allowed |= layer
        if here in layer:
            assert used <= allowed, f"{file} imports {used - allowed}"


@pytest.mark.parametrize("file", FILES)
def test_heavy_libraries_are_imported_where_they_are_used(file: str) -> None:
    top = ast.Module(body=[n for n in parsed(file).body if isinstance(n, ast.Import | ast.ImportFrom)], type_ignores=[])
    assert not {name.split(".")[0] for name in imported(top)} & HEAVY


def test_public_names_are_there_and_sorted() -> None:
    assert list(foregate.__all__) == sorted(foregate.__all__)
    for name in foregate.__all__:
        assert getattr(foregate, name) is not None
    with pytest.raises(AttributeError):
        foregate.nonsense  # noqa: B018


def test_help_loads_nothing_heavy() -> None:
    code = "import sys, foregate.cli; print(sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {name for name in (HEAVY | {"numpy", "numba", "pyarrow"}) if f"'{name}'" in loaded}


def test_the_core_runs_without_the_extras() -> None:
    """Importing every core module with the optional libraries forbidden must work."""
    code = f"""
import sys
class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"No module named '{{name}}'", name=name)
sys.meta_path.insert(0, Forbid())
import foregate
for name in foregate.__all__:
    getattr(foregate, name)
import foregate.cli, foregate.description, foregate.comparison, foregate.traces.importers
from foregate.errors import ExtraError, need
try:
    need("torch", "models")
except ExtraError as error:
    assert "pip install 'foregate[models]'" in str(error)
else:
    raise SystemExit("need() let a missing library pass")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
