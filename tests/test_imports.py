"""Imports go down only: estimators know no torch, plots and files no model, and nothing reaches up (docs/design.md)."""

from __future__ import annotations

import ast
import configparser
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "shapley"
# From the top down. A module may import from its own layer and the layers after it.
LAYERS = (
    ("shapley.cli", "shapley.__main__"),
    ("shapley.assess", "shapley.demo", "shapley.jobs", "shapley.server"),
    ("shapley.look", "shapley.report", "shapley.sweeps"),
    ("shapley.compare_report", "shapley.plots", "shapley.runs"),
    (
        "shapley.compare",
        "shapley.curves",
        "shapley.footprint",
        "shapley.game",
        "shapley.groups",
        "shapley.inference",
        "shapley.merge",
        "shapley.outcome",
        "shapley.selectors",
        "shapley.shape",
        "shapley.sparse",
        "shapley.sweep_design",
        "shapley.workers",
    ),
    ("shapley.clusters", "shapley.records", "shapley.hf.baseline", "shapley.hf.invariants", "shapley.hf.scoring"),
    (
        "shapley.store",
        "shapley.hdf5",
        "shapley.estimators",
        "shapley.builder",
        "shapley.facts",
        "shapley.hf",
        "shapley.sparse.insert",
        "shapley.sparse.kept",
        "shapley.sparse.layer",
        "shapley.sparse.winners",
    ),
    (
        "shapley.prompts",
        "shapley.keywords",
        "shapley.corpus",
        "shapley.values",
        "shapley.impairment",
        "shapley.progress",
    ),
    ("shapley.files", "shapley.errors", "shapley.keyed", "shapley.types", "shapley"),
)


def module_of(path):
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def layer_of(module):
    """Of the longest name that is the module or a package around it."""
    names = [(name, depth) for depth, layer in enumerate(LAYERS) for name in layer]
    fitting = [(len(name), depth) for name, depth in names if module == name or module.startswith(f"{name}.")]
    return max(fitting)[1]


def imports(path, *, at_import_time=False):
    """Modules that a file imports; ``at_import_time`` leaves out those within functions and for type checkers."""
    tree = ast.parse(path.read_text())
    if at_import_time:
        nodes = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    else:
        nodes = list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_go_down(path):
    own = layer_of(module_of(path))
    above = [name for name in imports(path) if name.split(".")[0] == "shapley" and layer_of(name) < own]
    assert not above


@pytest.mark.parametrize("path", sorted((PACKAGE / "estimators").glob("*.py")), ids=module_of)
def test_estimators_know_neither_torch_nor_files(path):
    assert not {name.split(".")[0] for name in imports(path)} & {"torch", "transformers", "h5py"}


@pytest.mark.parametrize(
    "module",
    [
        "shapley",
        "shapley.cli.main",
        "shapley.cli.query",
        "shapley.cli.estimate",
        "shapley.cli.submit",
        "shapley.plots",
        "shapley.report",
        "shapley.jobs.advance",
        "shapley.jobs.profile",
        "shapley.jobs.slurm",
    ],
)
def test_queries_and_reports_do_not_wait_for_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_public_name_is_there():
    import shapley

    for name in shapley.__all__:
        assert getattr(shapley, name) is not None
    with pytest.raises(AttributeError, match="no attribute"):
        shapley.nothing  # noqa: B018


def test_every_package_is_in_the_wheel():
    settings = configparser.ConfigParser()
    settings.read(PACKAGE.parent / "setup.cfg")
    found = {module_of(path) for path in PACKAGE.rglob("__init__.py")}
    assert found == set(settings["options"]["packages"].split()) - {"neuron_shapley_data"}
