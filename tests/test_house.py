"""The walls of the house: imports run downwards, and every name has one home."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
AT_THE_ROOT = {"tsae", "tsae_kernels", "metrics", "probes", "experiment"}
ROOT_IMPORTS = {("tsae", "tsae_kernels"), ("probes", "metrics")}
FLOORS = ("root", "ground", "data", "measures", "sections", "jobs", "experiment")
WINGS = {"data": "data", "measures": "measures", "sections": "sections", "jobs": "jobs"}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {
    module_name(path): path
    for path in (*sorted(ROOT.glob("*.py")), *sorted((ROOT / "tsae_lab").rglob("*.py")))
}
TREES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}


def floor(module: str) -> str:
    if module == "experiment":
        return "experiment"
    parts = module.split(".")
    if parts[0] != "tsae_lab":
        return "root"
    return WINGS[parts[1]] if len(parts) > 1 and parts[1] in WINGS else "ground"


def imported(module: str) -> set[str]:
    """The house's modules that a module imports, anywhere in it."""
    names = set()
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: an import relative to its own place"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= (inside & FILES.keys()) or {str(node.module)}
    return names & FILES.keys()


def defined(tree: ast.Module) -> list[str]:
    names = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names += [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]
    return names


def test_the_root_holds_the_owners_files_and_the_kernels():
    assert {name for name in FILES if "." not in name} == AT_THE_ROOT | {"tsae_lab"}


@pytest.mark.parametrize("module", FILES)
def test_imports_run_downwards(module):
    for other in imported(module):
        assert other != "experiment", f"{module} imports experiment, which runs as __main__"
        assert FLOORS.index(floor(other)) <= FLOORS.index(floor(module)), (
            f"{module} imports {other}, which stands above it"
        )
        if floor(module) == "measures":
            assert floor(other) != "ground", f"{module}: a measure neither writes nor prints"
        if floor(module) == "root":
            assert (module, other) in ROOT_IMPORTS, f"{module} imports {other}"
