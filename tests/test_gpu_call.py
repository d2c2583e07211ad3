"""The one call on a GPU, rehearsed without one: it runs to its end, and what hangs is stopped."""

import json
import os
import re
import subprocess
import sys
import time
from operator import attrgetter
from types import SimpleNamespace

import card
import emulator
import numpy as np
import pytest

from minigpt.engine import fast_cupy, fast_elementwise
from tests import gpu_call
from tests.benchmarks import __main__ as command
from tests.benchmarks import gpu, gpu_parts, gpu_work, tables
from tests.benchmarks.measure import ROOT

emulated = pytest.mark.skipif(not emulator.COMPILER, reason="the emulator needs g++")


@emulated
def test_the_whole_call_runs_to_its_end_on_the_stand_in(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox " * 200)
    out = tmp_path / "out"
    call = [sys.executable, "-m", "tests.gpu_call", "--emulate", "--data", str(text)]
    done = subprocess.run(
        call, cwd=ROOT, env=os.environ | {"OUT": str(out)}, capture_output=True, text=True
    )
    lines = [json.loads(line) for line in (out / "gpu.jsonl").read_text().splitlines()]
    assert not [line for line in lines if "error" in line] and not done.returncode, done.stdout
    expected = [part for part in gpu.PARTS if part != gpu.TWICE]
    assert [*dict.fromkeys(line["part"] for line in lines)] == expected
    for part, work in (("kernels", gpu_work.KERNELS), ("formulas", gpu_work.FORMULAS)):
        assert {line["name"] for line in lines if line["part"] == part} > {*work}
    assert (out / "gpu.md").read_text() == tables.render("gpu", {"lines": lines}) + "\n"
    assert re.search(r"[1-9]\d* passed", (out / "tests.txt").read_text())
    losses = {
        line["name"]: line["mean of 3 losses"] for line in lines if line["part"].startswith("124m")
        if "remark" not in line
    }  # fmt: skip
    assert max(losses.values()) - min(losses.values()) < 1e-4 and len(losses) >= 3


@emulated
@pytest.mark.slow
def test_every_test_for_a_gpu_passes_on_the_stand_in():
    tests = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/test_gpu.py", "-rs"]
    done = subprocess.run(
        tests,
        cwd=ROOT,
        env=os.environ | {"MINIGPT_GPU": "emulated"},
        capture_output=True,
        text=True,
    )
    assert not done.returncode, done.stdout[-3000:]
    assert {*re.findall(r"^SKIPPED.*: (.*)$", done.stdout, re.M)} == {"the emulator has none of it"}


def test_without_a_gpu_the_tests_are_skipped_with_the_reason():
    code = "import sys; sys.modules['cupy'] = None; import pytest; sys.exit(pytest.main("
    code += "['-m', 'gpu', 'tests/test_gpu.py', '-rs', '-k', 'tf32', '-p', 'no:cacheprovider']))"
    environment = {key: value for key, value in os.environ.items() if key != "MINIGPT_GPU"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert "1 skipped" in done.stdout and "device gpu: CuPy is not installed" in done.stdout


def test_every_kernel_every_formula_and_every_part_is_measured():
    kernels = re.findall(r"__global__ void (\w+)", fast_cupy.SOURCE.read_text(encoding="utf-8"))
    assert {*kernels} == {*gpu_work.KERNELS}
    assert {*fast_elementwise.FORMULAS} == {*gpu_work.FORMULAS}
    assert {*gpu.PARTS} == {*gpu_parts.PARTS}


@pytest.mark.parametrize("name, arrays", [
    # in arrays of B T C numbers: what the formula reads and writes, at GPT-2 124M's full size
    ("layer_norm_forward", 2), ("layer_norm_backward", 3), ("cross_entropy_forward", 65.5),
    ("cross_entropy_backward", 131), ("column_sum", 4), ("softmax_forward", 24),
    ("softmax_backward", 32),
])  # fmt: skip
def test_a_kernel_is_said_to_move_what_its_formula_needs(name, arrays):
    make, size = gpu_work.KERNELS[name], gpu_parts.GPT2 | {"vocab_size": 50304}
    moved = gpu_work.counted(name, lambda a: make(size, 16, a), fast_cupy.launch)
    assert moved / (16 * 1024 * 768 * 4) == pytest.approx(arrays, rel=0.04)  # and some numbers


@pytest.mark.parametrize("name", gpu_work.FORMULAS)
def test_a_formula_at_full_size_has_arguments_that_fit(name):
    make, size = gpu_work.FORMULAS[name], gpu_parts.GPT2
    moved = gpu_work.counted(name, lambda a: make(size, 2, a), fast_elementwise.run)
    assert moved > 1e7 or name == "judged"  # of one number


@pytest.mark.parametrize("name", ["adamw", "sgd", "judged", "muon_ahead", "muon_apply"])
def test_an_optimizer_is_timed_with_a_norm_for_which_it_moves_the_weights(name):
    negative = SimpleNamespace(new=lambda *shape: np.full(shape, -1.0), put=lambda x: x)
    norm2, *_ = gpu_work.FORMULAS[name](gpu_parts.TINY, 2, negative)
    assert np.isfinite(np.sqrt(norm2)).all()


def test_products_do_the_flops_that_gpt2_counts():
    size = gpu_parts.GPT2 | {"vocab_size": 50304}
    flops = {}
    for name, make in gpu_work.products(size, 16).items():
        _, flops[name] = make(lambda *shape: SimpleNamespace(shape=shape))
    layer = [name for name in flops if not name.startswith("head") and " of " not in name]
    layers = 12 * sum(flops[name] for name in layer)
    per_token = 6 * (12 * 12 * 768**2)  # three products, of two FLOP for each weight
    assert layers == per_token * 16 * 1024


# limits of time


def python(code):
    return [sys.executable, "-c", code]


def test_a_command_that_hangs_is_stopped_with_all_that_it_has_started():
    hang = "import time; time.sleep(60)"
    code = f"import subprocess, sys; print('begun', flush=True); subprocess.run({python(hang)!r})"
    begin, lines = time.monotonic(), []
    with pytest.raises(gpu.Failed, match="stopped after 1 s"):
        lines += gpu.limited(python(code), 1.0, {})
    assert time.monotonic() - begin < 20  # the grandchild held the pipe open as well


def test_a_command_that_fails_gives_its_lines_and_its_last_words():
    found, code = [], "print('{}', flush=True); raise ValueError('a reason')"
    with pytest.raises(gpu.Failed, match="ValueError: a reason"):
        for line in gpu.limited(python(code), 60, {}):
            found.append(line)
    assert found == ["{}\n"]


@pytest.fixture
def parts(monkeypatch):
    """Let the parts be these pieces of code."""

    def be(**codes):
        monkeypatch.setattr(gpu, "PARTS", {name: (f"of {name}", 60) for name in codes})
        real = gpu.limited

        def run(words, *args):
            return real(python(codes[words[-2]]), *args)

        monkeypatch.setattr(gpu, "limited", run)

    return be


SAY = 'print(\'{"name": "row", "ms": 1.5}\', flush=True)'


def test_a_part_that_fails_is_told_and_the_next_one_runs(parts, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OUT", str(tmp_path))
    parts(one=f"{SAY}; raise ValueError('bad')", two=SAY)
    lines = gpu.kept(gpu.measured(["one", "two"], 100))
    figures = {"table": "of one", "name": "row", "ms": 1.5}
    assert lines[0] == {"part": "one"} | figures
    assert lines[1]["name"] == "one" and "ValueError: bad" in lines[1]["error"]
    assert lines[2] == {"part": "two"} | figures | {"table": "of two"} and len(lines) == 3
    for text in ((tmp_path / "gpu.jsonl").read_text(), capsys.readouterr().out):
        assert [json.loads(line) for line in text.splitlines()] == lines


def test_a_part_for_which_no_time_is_left_is_told(parts):
    parts(one=SAY)
    [line] = gpu.measured(["one"], 3)
    assert line["error"] == "no time was left"


def test_without_a_gpu_nothing_else_is_tried_and_one_line_says_why(parts, capsys):
    parts(machine="import sys; sys.exit('device gpu: no GPU answers')", two=SAY)
    with pytest.raises(SystemExit, match="^gpu: device gpu: no GPU answers$"):
        gpu.benchmark()
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_a_text_is_trained_on_only_if_there_is_one(parts):
    parts(text=SAY)
    assert [*gpu.measured(["text"], 100)] == []
    assert len([*gpu.measured(["text"], 100, "some.txt")]) == 1


# tables


def test_lines_become_a_table_for_each_title_and_a_list_of_what_failed():
    lines = [
        {"part": "a", "table": "steps", "name": "one", "ms": 12.3456, "tokens/s": 45678.9},
        {"part": "b", "table": "steps", "name": "two", "ms": 1234.5, "peak GB": 3},
        {"part": "b", "table": "steps", "name": "three", "error": "where\nValueError: bad"},
    ]
    assert tables.render("gpu", {"lines": lines}).splitlines() == [
        "| steps | ms | tokens/s | peak GB |", "| --- | --: | --: | --: |",
        "| one | 12.35 | 45,679 |  |", "| two | 1,234 |  | 3 |", "",
        "Failed:", "", "- b, three: ValueError: bad", "", "",
    ][:-1]  # fmt: skip
    assert "Nobody has measured it yet." in tables.render("gpu", {"lines": []})


def test_the_benchmark_of_a_gpu_is_run_when_it_is_asked_for(monkeypatch, capsys):
    saved = {}
    monkeypatch.setattr(command, "find_spec", lambda name: False)
    monkeypatch.setattr(command.gpu, "benchmark", lambda data: {"lines": [], "data": data})
    monkeypatch.setattr(command.tables, "save", saved.__setitem__)
    monkeypatch.setattr(command.tables, "load", lambda: {"gpu": {"lines": []}})
    monkeypatch.setattr(sys, "argv", ["tests.benchmarks", "gpu", "--data", "some.txt"])
    command.main()
    assert saved == {"gpu": {"lines": [], "data": "some.txt"}}


# the GPU itself, as far as a clock can stand in for it


class Clock:
    """Events of a GPU on which every call of work() takes 2 ms, and a spin 500."""

    def __init__(self):
        self.now, self.asked = 0.0, 0.0  # ms: how far the GPU is, and until when it has work
        clock = self

        class Event:
            done = property(lambda self: clock.now >= self.at)

            def record(self):
                self.at = clock.asked

            def synchronize(self):
                clock.now = max(clock.now, self.at)

        self.Event = Event

    def work(self, ms=2.0):
        self.asked += ms

    def catch_up(self):
        self.now = self.asked


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def fake(clock):
    """A card.Gpu on that clock."""
    made = object.__new__(card.Gpu)
    cuda = SimpleNamespace(
        Event=clock.Event,
        get_elapsed_time=lambda begin, end: end.at - begin.at,
        runtime=SimpleNamespace(deviceSynchronize=clock.catch_up),
    )
    made.xp = SimpleNamespace(
        cuda=cuda, RawKernel=lambda code, name: lambda grid, block, args: clock.work(500.0)
    )
    return made


def test_the_time_of_a_call_is_the_gpus(fake, clock):
    assert fake.ms(clock.work) == pytest.approx(2.0)


def test_a_step_that_waits_is_told_from_one_that_does_not(fake, clock):
    assert not fake.waits(clock.work)
    assert fake.waits(clock.catch_up)


def test_cupy_has_every_name_that_is_used():
    cupy = pytest.importorskip("cupy")
    for name in (
        "cuda.Event.done", "cuda.Event.record", "cuda.Event.synchronize", "cuda.get_elapsed_time",
        "cuda.runtime.deviceSynchronize", "cuda.runtime.getDeviceProperties",
        "cuda.runtime.driverGetVersion", "cuda.runtime.runtimeGetVersion", "cuda.set_allocator",
        "cuda.runtime.memGetInfo", "get_default_memory_pool", "RawKernel", "RawModule",
    ):  # fmt: skip
        attrgetter(name)(cupy)
    for name in ("total_bytes", "set_limit", "free_all_blocks"):
        attrgetter(name)(cupy.cuda.MemoryPool)
    assert issubclass(cupy.cuda.memory.OutOfMemoryError, MemoryError)


def test_the_call_says_where_its_files_lie(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("OUT", str(tmp_path / "new"))
    monkeypatch.setattr(gpu_call, "tested", lambda path, *_: path.write_text("fine") and False)
    monkeypatch.setattr(gpu, "measured", lambda *_: iter([]))
    with pytest.raises(SystemExit) as caught:
        gpu_call.main([])
    assert not caught.value.code
    files = {file.name for file in (tmp_path / "new").iterdir()}
    assert files == {"tests.txt", "gpu.md", "sanitizer.txt"}
