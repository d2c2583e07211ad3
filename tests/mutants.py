"""Do the tests notice a wrong derivative? python -m tests.mutants [N] changes one thing at a time.

In the operations, the formulas and the fast pairs an operator, a sign, a constant, an argument's
place or a transposition is changed, in a copy of the project, and the tests of the engine run. A
mutant that they let live is printed. N: how many, drawn with a seed (default: all, an hour).
"""

import argparse
import ast
import copy
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
ENGINE = ROOT / "minigpt/engine"
FILES = ["ops", "functional", "recipe", "recurrence", "convolution"]
FILES += ["fast_numpy", "fast_recurrence", "fast_convolution"]
TESTS = ["ops", "autograd", "functional", "edges"]
SWAP = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.MatMult: ast.Mult,
    ast.Pow: ast.Mult, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip


def mutants(tree):
    """(line, what changes, function that changes the n-th node of a copy) of every mutant."""
    for n, node in enumerate(ast.walk(tree)):
        if isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in SWAP:
            other = SWAP[type(node.op)]
            yield node.lineno, f"{ast.unparse(node)}: {other.__name__}", n, set_op(other)
        elif isinstance(node, ast.Compare) and type(node.ops[0]) in SWAP:
            other = SWAP[type(node.ops[0])]
            yield node.lineno, f"{ast.unparse(node)}: {other.__name__}", n, set_comparison(other)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            yield node.lineno, f"{ast.unparse(node)}: no sign", n, drop_sign
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
            yield node.lineno, f"{node.value}: one more", n, one_more


def set_op(other):
    def change(node):
        node.op = other()

    return change


def set_comparison(other):
    def change(node):
        node.ops[0] = other()

    return change


def drop_sign(node):
    node.op = ast.UAdd()


def one_more(node):
    node.value = node.value + 1


def survives(folder):
    """Whether the tests of the engine pass in a copy of the project."""
    names = [f"tests/test_{name}.py" for name in TESTS]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *names]
    environment = os.environ | {"PYTHONPATH": str(folder), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        timeout=300,
    )  # fmt: skip
    return done.returncode == 0


def main():
    parser = argparse.ArgumentParser("python -m tests.mutants", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("n", nargs="?", type=int, help="how many")
    found = []
    for name in FILES:
        tree = ast.parse((ENGINE / f"{name}.py").read_text("utf-8"))
        found += [(name, tree, *mutant) for mutant in mutants(tree)]
    wanted = parser.parse_args().n or len(found)
    lived = []
    with TemporaryDirectory() as folder:
        place = Path(folder) / "copy"
        left_out = shutil.ignore_patterns(".git", "out", "data", "__pycache__")
        shutil.copytree(ROOT, place, ignore=left_out)
        assert survives(place), "the tests fail without a mutant"
        sample = random.Random(0).sample(found, wanted)
        for name, tree, line, what, n, change in sample:
            file = place / f"minigpt/engine/{name}.py"
            before = file.read_text("utf-8")
            changed = copy.deepcopy(tree)
            change(list(ast.walk(changed))[n])
            file.write_text(ast.unparse(changed), "utf-8")
            try:
                alive = survives(place)
            except subprocess.TimeoutExpired:
                alive = False
            file.write_text(before, "utf-8")
            if alive:
                lived.append(what)
                print(f"lives: engine/{name}.py:{line}: {what}", flush=True)
    print(f"{wanted - len(lived)} of {wanted} were noticed; there are {len(found)}")


if __name__ == "__main__":
    main()
