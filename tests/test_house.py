"""The walls of the house: imports run downwards, and every name has one home."""

import ast
import os
import re
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE

import pytest
from toys import ROOT

AT_THE_ROOT = {"tsae", "tsae_kernels", "metrics", "probes", "experiment", "plot"}
ROOT_IMPORTS = {("tsae", "tsae_kernels"), ("probes", "metrics")}
FLOORS = (
    "root",
    "ground",
    "data",
    "rivals",
    "measures",
    "sections",
    "report",
    "jobs",
    "experiment",
)
MOST_LINES, MOST_OF_A_FUNCTION, WIDTH = 600, 45, 100
PRONOUNS = {"found", "one", "part", "kept", "at", "given"}  # say nothing in a long function
MOST_PRONOUNS = 20
WINGS = {name: name for name in ("data", "rivals", "measures", "sections", "report", "jobs")}
WINGS |= {"interop": "jobs"}  # one module beside them


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {
    module_name(path): path
    for path in (*sorted(ROOT.glob("*.py")), *sorted((ROOT / "tsae_lab").rglob("*.py")))
}
TESTS = sorted((ROOT / "tests").glob("*.py"))
TREES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}


def floor(module: str) -> str:
    if module in ("experiment", "plot"):
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


def defined(tree: ast.Module) -> set[str]:
    """Names of functions, classes, constants, aliases and type variables at the top level."""
    names = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}
    return names


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    """Every function and method, with the module it is in."""
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                yield module, node


def bound(function: ast.FunctionDef) -> Iterator[str]:
    """The names of a function's parameters and local variables, once per binding."""
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg


def n_lines(first: ast.stmt, last: ast.stmt) -> int:
    return (last.end_lineno or last.lineno) - first.lineno + 1


def test_the_root_holds_the_owners_files_and_the_kernels():
    assert {name for name in FILES if "." not in name} == AT_THE_ROOT | {"tsae_lab"}


@pytest.mark.parametrize("module", FILES)
def test_imports_run_downwards(module):
    for other in imported(module):
        assert other != "experiment", f"{module} imports experiment, which runs as __main__"
        assert FLOORS.index(floor(other)) <= FLOORS.index(floor(module)), (
            f"{module} imports {other}, which stands above it"
        )
        if floor(module) in ("rivals", "measures"):
            assert floor(other) != "ground", f"{module}: a measure neither writes nor prints"
        if floor(module) == "root":
            assert (module, other) in ROOT_IMPORTS, f"{module} imports {other}"


def test_a_name_has_one_home():
    homes = defaultdict(list)
    for module, tree in TREES.items():
        for name in defined(tree):
            homes[name].append(module)
    assert {name: where for name, where in homes.items() if len(where) > 1} == {}


def test_no_function_has_a_modules_name():
    modules = {module.split(".")[-1]: module for module in FILES}
    same = {f"{module}.{f.name}": modules[f.name] for module, f in functions() if f.name in modules}
    assert same == {}


def test_no_module_takes_a_private_name_of_another():
    taken = []
    for module, tree in TREES.items():
        rooms = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in FILES:
                rooms |= {alias.asname or alias.name for alias in node.names}
                taken += [f"{module}: {a.name}" for a in node.names if a.name.startswith("_")]
            elif isinstance(node, ast.Import):
                rooms |= {alias.name for alias in node.names} & FILES.keys()
        taken += [
            f"{module}: {node.value.id}.{node.attr}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
            if node.value.id in rooms and re.match(r"_[^_]", node.attr)
        ]
    assert taken == []


def test_no_file_is_long():
    lengths = {module: len(path.read_text().splitlines()) for module, path in FILES.items()}
    assert {module: n for module, n in lengths.items() if n > MOST_LINES} == {}


def test_no_function_is_long():
    lengths = {f"{module}.{f.name}": n_lines(f, f) for module, f in functions()}
    assert {name: n for name, n in lengths.items() if n > MOST_OF_A_FUNCTION} == {}


def test_hardly_a_line_is_wide():
    lines = [line for path in FILES.values() for line in path.read_text().splitlines()]
    assert sum(len(line) > WIDTH for line in lines) < 0.02 * len(lines)


def test_variables_of_long_functions_say_what_they_hold():
    places = Counter(
        module
        for module, function in functions()
        if n_lines(function, function) > 5
        for name in bound(function)
        if name in PRONOUNS
    )
    assert sum(places.values()) < MOST_PRONOUNS, places.most_common()


def test_every_process_collects_the_same_tests():
    """Two processes share the suite, and refuse to where a test's name holds the time, a hash's
    order or a random number.
    """
    collect = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-n", "0", "tests"]
    started = []
    for seed in ("1", "2"):
        env = os.environ | {"PYTHONHASHSEED": seed}
        started.append(subprocess.Popen(collect, cwd=ROOT, env=env, stdout=PIPE, text=True))
        time.sleep(1.1)  # more than the second that a time stamp may be rounded to
    first, second = (
        [line for line in p.communicate()[0].split("\n") if "::" in line] for p in started
    )
    assert len(first) > 1000
    assert first == second


def test_no_test_file_imports_another():
    for path in TESTS:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not any(str(name).startswith("test_") for name in names), f"{path.name}: {names}"


def test_every_public_function_is_named_in_a_test():
    """A command is named as its users do: `minimal_pairs_command` as `minimal-pairs`."""
    words = set(re.findall(r"[\w-]+", "\n".join(path.read_text() for path in TESTS)))
    words |= {part for word in words for part in word.split("-")}
    public = {
        f"{module}.{node.name}": node.name
        for module, tree in TREES.items()
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    }
    unnamed = [
        place
        for place, name in public.items()
        if not {name, name.removesuffix("_command").replace("_", "-")} & words
    ]
    assert unnamed == []
