"""Who may import whom, where a program may talk to its user or end, and how large its pieces may be."""

import ast
import statistics
import sys
from pathlib import Path

import pytest

import parallel_fixedram

PACKAGE = Path(parallel_fixedram.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
MAY_IMPORT = {
    "core": {"core"},
    "format": {"core", "format"},
    "host": {"core", "host"},
    "machines": {"core", "format", "host", "machines"},
    "engine": {"core", "format", "host", "engine"},
    "image": {"core", "format", "host", "engine", "image"},
    "boot": {"core", "format", "host", "machines", "engine", "image", "boot"},
    "verbs": {"core", "format", "host", "machines", "engine", "image", "boot", "verbs"},
    "experiments": {"core", "format", "host", "machines", "engine", "image", "boot", "verbs", "experiments"},
    "cli": {"core", "cli", "experiments", "verbs"},
    "__init__": {"core", "verbs"},
    "__main__": {"cli"},
}
PURE = {"core", "format"}
NOT_IN_CORE = {"os", "mmap", "time", "subprocess", "multiprocessing", "socket", "logging", "signal"}
NOT_IN_CORE |= {
    "asyncio",
    "ctypes",
    "fcntl",
    "io",
    "pathlib",
    "posix",
    "select",
    "shutil",
    "sys",
    "tempfile",
    "threading",
}
ALLOWED_IN_CORE = {"msgspec", "numpy"}
MOST_LINES = {ast.ClassDef: 150, ast.FunctionDef: 50, ast.AsyncFunctionDef: 50}
MOST_LINES_OF_A_MODULE, MEDIAN_LINES = 350, 150
PURE_ENOUGH = {("errors", "os.strerror")}  # a look-up in a table of libc's


def imports(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the layer"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_layers_below_it(path):
    layer = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    found = imports(ast.parse(path.read_text()))
    used = {name.split(".")[1] for name in found if name.startswith("parallel_fixedram.")}
    assert used <= MAY_IMPORT[layer]
    if layer in PURE:
        others = {name for name in found if (path.stem, name) not in PURE_ENOUGH}
        tops = {name.split(".")[0] for name in others} - {"parallel_fixedram"} - ALLOWED_IN_CORE
        assert not tops & NOT_IN_CORE
        assert tops <= sys.stdlib_module_names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_command_line_prints_and_exits(path):
    if path.relative_to(PACKAGE).parts[0] not in ("cli", "__main__.py"):
        called = {
            ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
        }
        assert not called & {"print", "sys.exit", "exit", "quit"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_class_function_or_module_is_too_long(path):
    """Lines include docstrings. What is too long does more than one thing: find the other thing, and give it a name."""
    text = path.read_text()
    too_long = {
        node.name: lines
        for node in ast.walk(ast.parse(text))
        if type(node) in MOST_LINES and (lines := node.end_lineno - node.lineno + 1) > MOST_LINES[type(node)]
    }
    assert not too_long
    assert text.count("\n") <= MOST_LINES_OF_A_MODULE


def test_half_of_all_modules_are_short():
    assert statistics.median(path.read_text().count("\n") for path in MODULES) < MEDIAN_LINES
