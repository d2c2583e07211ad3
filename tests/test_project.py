"""What the README and the table of contents promise: order, size, the commands and the examples."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import golden
import pytest

from minigpt.messages import look_up

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "minigpt"
README = (ROOT / "README.md").read_text(encoding="utf-8")
CHAPTERS = [*golden.chapters()]


def names_imported(path):
    """What a file imports of minigpt: "minigpt.nn", "minigpt.nn.model_class", ..."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        yield from (name for name in names if name.startswith("minigpt."))


def imported(path):
    """The files of minigpt that a file imports, as the table of contents names them."""
    for name in names_imported(path):
        file = "/".join(name.split(".")[1:]) + ".py"
        if (PACKAGE / file).is_file():
            yield file


def test_the_table_of_contents_lists_every_file_once():
    files = {p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*.py")}
    files = {f for f in files if not f.endswith("__init__.py")}
    missing, gone = files - {*CHAPTERS}, {*CHAPTERS} - files
    assert not missing, f"add {missing} to the table of contents, minigpt/__init__.py"
    assert not gone and len(CHAPTERS) == len(files)


@pytest.mark.parametrize("number", range(1, len(CHAPTERS)))  # tiny.py is a look ahead
def test_a_chapter_imports_only_earlier_ones(number):
    assert set(imported(PACKAGE / CHAPTERS[number])) <= set(CHAPTERS[:number])


@pytest.mark.parametrize(
    "folder, allowed",
    [
        ("engine/fast_", ("engine/arrays.py", "engine/fast_")),
        ("engine/", ("engine/",)),
        ("nn/", ("engine/", "nn/", "messages.py")),
        ("datasets/", ("engine/", "datasets/", "files.py", "messages.py")),
        ("training/", ("engine/", "training/", "nn/module.py", "files.py", "messages.py")),
        ("generate.py", ("engine/",)),
    ],
)
def test_the_parts_meet_only_where_the_design_says(folder, allowed):
    chapters = [c for c in CHAPTERS if c.startswith(folder)]
    assert chapters
    for chapter in chapters:
        strays = [f for f in imported(PACKAGE / chapter) if not f.startswith(allowed)]
        assert not strays, f"{chapter} imports {strays}"


def folders(path):
    """The folders of minigpt that a file imports, or imports from, but for nn/module.py."""
    for name in names_imported(path):
        folder = name.split(".")[1]
        if (PACKAGE / folder).is_dir() and not name.startswith("minigpt.nn.module"):
            yield folder


@pytest.mark.parametrize("folder", ["engine", "nn", "datasets", "training"])
def test_a_folder_imports_no_package_that_the_design_does_not_allow_it(folder):
    for path in (PACKAGE / folder).glob("*.py"):
        assert {*folders(path)} <= {"engine", folder}, path


def test_nothing_else_imports_an_application():
    for chapter in CHAPTERS:
        if not chapter.startswith(("applications/", "hub", "origin", "__main__")):
            assert not [f for f in imported(PACKAGE / chapter) if f.startswith("applications/")]


def tables():
    """Every table of names in a folder's __init__.py, each with what its names stand for."""
    for package in ("nn", "datasets", "training", "applications"):
        for name, table in vars(import_module(f"minigpt.{package}")).items():
            if name.isupper() and not name.endswith(("SIZES", "PAIRS")) and isinstance(table, dict):
                yield name, table


def test_every_name_in_a_table_stands_for_something():
    found = dict(tables())
    assert {"MODELS", "OPTIMIZERS", "APPLICATIONS"} <= found.keys()
    for table in found.values():
        assert all(callable(look_up(table, name, "test")) for name in table)


def test_cupy_is_imported_in_device_alone():
    imports = re.compile(r"^\s*(import|from) cupyx?\b", re.M)
    found = [p.name for p in PACKAGE.rglob("*.py") if imports.search(p.read_text(encoding="utf-8"))]
    assert found == ["device.py"]


def test_an_installed_package_has_the_files_that_it_opens():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packaged = settings["tool"]["setuptools"]["package-data"]["minigpt"]
    found = {p for suffix in ("html", "cu", "typed") for p in PACKAGE.rglob(f"*.{suffix}")}
    assert len(found) >= 3 and found == {p for pattern in packaged for p in PACKAGE.glob(pattern)}


EDITED = """
from minigpt import Tensor

x = Tensor([[1.0, 2.0]], requires_grad=True)
y: Tensor = x * 2 + 2 / x - (x @ x.T)[0] ** 2 + abs(-x).T.exp().sum(axis=1, keepdims=True)
print(x.grad[0], x.detach().numpy().mean(), float(y[0, 0]), f"{y.mean():.3f}", (x > 0).any())
for part in x.split(2, axis=1):
    part.backward()
for row in y:
    row.backword()
"""


def test_an_editor_finds_the_misspelt_method_of_a_tensor_and_no_other_error(tmp_path):
    pytest.importorskip("pyright")
    file = tmp_path / "edited.py"
    file.write_text(EDITED)
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    silent = os.environ | {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}  # of newer versions
    done = subprocess.run([*command, file], capture_output=True, text=True, cwd=ROOT, env=silent)
    if not done.stdout.startswith("{"):
        pytest.skip(f"pyright needs Node.js: {done.stderr.splitlines()[-1:]}")
    found = json.loads(done.stdout)["generalDiagnostics"]
    errors = [d["message"].splitlines()[0] for d in found if d["severity"] == "error"]
    assert errors == ['Cannot access attribute "backword" for class "Tensor"']


def test_importing_minigpt_loads_numpy_and_nothing_else():
    code = "import minigpt, sys; print(*{m.partition('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    loaded = set(done.stdout.split())
    assert "numpy" in loaded
    assert not loaded & {"cupy", "torch", "tqdm", "safetensors", "argparse"}


@pytest.mark.slow
def test_the_golden_path_is_traced_and_begins_with_the_path():
    """A file of speed, of the recipe or of another mechanism on it would be a hidden import."""
    found = golden.golden(golden.CANONICAL)
    assert sum(map(len, found.values())) > 600  # fewer would mean that the trace missed files
    strays = ("fast_", "parallel.py", "recipe.py", "muon.py", "convolution.py", "recurrence.py")
    assert not [name for name in found if any(stray in name for stray in strays)]


def test_the_readme_opens_with_an_environment_and_two_commands():
    first = re.search(r"```sh\n(.*?)```", README, re.S)[1]
    commands = [line.partition(" #")[0].strip() for line in first.splitlines()]
    assert commands == [
        "python3 -m venv .venv && source .venv/bin/activate",
        "pip install -e . && python train.py",
        'pip install -e ".[test]" && pytest',
    ]


def test_the_readme_is_read_in_one_go():
    english, chinese = README.split("\n## 中文\n")
    assert len(english.splitlines()) <= 200 and len(chinese.splitlines()) <= 60


def test_tiny_is_seen_in_one_look():
    assert golden.count(PACKAGE / "tiny.py") <= 80


def test_every_option_that_the_readme_names_exists():
    import sample
    import train

    parsers = train.command_line(), sample.command_line()
    known = {option for parser in parsers for option in parser._option_string_actions}
    used = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README))
    assert used - known <= {"--rounds", "--json"}  # of the benchmark


def test_the_continuous_integration_runs_the_readmes_test_command():
    assert 'pip install -e ".[test]" && pytest' in (ROOT / ".ci/run").read_text()
