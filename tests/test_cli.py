"""train.py and sample.py from end to end, as their users meet them."""

import errno
import io
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import sample
import train
from minigpt import generate, nn
from minigpt.applications.writing import TOGETHER
from minigpt.training import checkpoint

ROOT = Path(train.__file__).parent
SMALL = shlex.split(
    "--n-layer 1 --n-embd 16 --n-head 2 --block-size 16 --batch-size 4 --steps 6 --eval-every 3"
)
WORDS = "the quick brown fox jumps over a lazy dog while old cats sleep".split()
TEXT = " ".join(random.Random(1).choices(WORDS, k=400))  # without a line end


@pytest.fixture
def folder(tmp_path, tmp_path_factory, monkeypatch):
    """An empty working folder with a text in it; what train.py caches goes elsewhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "CACHE", tmp_path_factory.mktemp("cache"))
    Path("text.txt").write_text(TEXT)
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of six steps, to be read only."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(TEXT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "CACHE", folder)
        train.main(["--data", f"{folder}/text.txt", "--out", f"{folder}/run", *SMALL])
    return folder / "run"


def tree(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def mistake(main, words, capsys, folder):
    """The one line on stderr of a command that must end with 2 and leave the folder as it was."""
    before = tree(folder)
    with pytest.raises(SystemExit) as caught:
        main(words)
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.count("\n") == 1 and error.endswith("\n"), error
    assert "Traceback" not in error and tree(folder) == before
    return error


def child(script, *words, **options):
    """A real process that runs a script of the project, or Python code that imports one."""
    start = [str(ROOT / script)] if script.endswith(".py") else ["-c", script]
    return subprocess.run(
        [sys.executable, *start, *words], capture_output=True, timeout=60,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}, **options,
    )  # fmt: skip


# training


def test_the_six_steps_are_said_in_order(folder, capsys):
    train.main(["--data", "text.txt", *SMALL])
    printed = capsys.readouterr()
    steps = "1 preprocess", "2 build", "3 initialise", "4 train", "5 validate", "6 apply"
    found = re.findall(r"^\d \w+", printed.out, re.MULTILINE)
    assert tuple(found) == steps and printed.err == ""
    assert re.findall(r"step +(\d+) .*(untrained|validation)", printed.out) == [
        ("0", "untrained"), ("3", "validation"), ("6", "validation")
    ]  # fmt: skip
    assert f"{len(TEXT):,} characters, {len(set(TEXT))} distinct" in printed.out


def test_a_run_leaves_two_checkpoints_a_log_its_curve_and_its_samples(trained):
    files = ["best.safetensors", "curve.svg", "last.safetensors", "log.csv", "samples.txt"]
    assert sorted(os.listdir(trained)) == files
    assert len((trained / "samples.txt").read_text().splitlines()) == 3  # one of them untrained
    assert checkpoint.load(trained / "last.safetensors")[1]["state"]["step"] == 6


def test_ctrl_c_saves_and_says_the_command_that_ends_as_if_it_had_not_come(folder, capsys):
    words = ["--data", "text.txt", *SMALL, "--dropout", "0.1", "--out"]
    train.main([*words, "whole"])
    interrupted = f"""
import os, pathlib, signal, train
train.CACHE, step = pathlib.Path({str(train.CACHE)!r}), train.Trainer.train_step
def step_under_fire(self):
    if self.step == 3:
        os.kill(os.getpid(), signal.SIGINT)
    return step(self)
train.Trainer.train_step = step_under_fire
train.main()
"""
    process = child(interrupted, *words, "my run")
    assert process.returncode == 0 and process.stderr == b""
    last = process.stdout.decode().splitlines()[-1]
    command = re.search(r"stopped after step 4; continue: python train.py (.*)", last)
    capsys.readouterr()
    train.main(shlex.split(command[1]))
    assert "continues after step 4 of 6" in capsys.readouterr().out
    for name in ("last", "best"):
        files = [Path(run, f"{name}.safetensors").read_bytes() for run in ("whole", "my run")]
        assert files[0] == files[1]


def test_a_run_without_a_new_best_stops_by_itself_and_goes_on_to_its_end(folder, capsys):
    words = ["--data", "text.txt", *SMALL]
    words += "--steps 400 --patience 2 --eval-every 10".split()
    train.main([*words, "--learning-rate", "0.1"])  # where it jumps to and fro
    printed = capsys.readouterr().out
    step = int(re.search(r"step (\d+): no new best in 2 validations; ", printed)[1])
    assert 160 < step < 400 and "6 apply" in printed


def test_minutes_become_steps_that_the_checkpoint_keeps(folder, capsys):
    shape = " ".join(SMALL).replace("--steps 6", "--minutes 1").split()
    train.main(["--data", "text.txt", *shape])
    printed = capsys.readouterr().out  # a busy machine, too, has the time to read it all six times
    steps = int(re.search(r"(\d+) steps read this data 6 times", printed)[1])
    about = checkpoint.load("out/text-gpt/last.safetensors")[1]
    assert steps == about["state"]["steps"] == about["state"]["step"] > 1
    assert (about["config"]["minutes"], about["config"]["steps"]) == (1.0, None)


@pytest.mark.parametrize("line", ["train.py --data text.txt", "sample.py run"])
def test_ctrl_c_outside_the_steps_is_no_traceback(folder, line):
    code = f"""
import runpy, sys, minigpt.engine.device as device
def interrupt(*_):
    raise KeyboardInterrupt
device.select, sys.argv = interrupt, {line.split()}
runpy.run_path({str(ROOT / line.split()[0])!r}, run_name="__main__")
"""
    process = child(code)
    assert (process.returncode, process.stderr) == (-signal.SIGINT, b"")


def test_resume_may_go_on_for_longer(folder, trained, capsys):
    shutil.copytree(trained, "run")
    before = Path("run/log.csv").read_text()
    train.main(["--resume", "--out", "run", "--steps", "9"])
    assert "continues after step 6 of 9" in capsys.readouterr().out
    assert checkpoint.load("run/last.safetensors")[1]["state"]["step"] == 9
    log = Path("run/log.csv").read_text()
    assert log.startswith(before) and log.count("\n") == before.count("\n") + 1


def test_gpt2s_own_form_trains_and_samples(folder, capsys):
    train.main(["--data", "text.txt", *SMALL, "--model", "gpt2"])
    arrays, about = checkpoint.load("out/text-gpt2/best.safetensors")
    assert about["config"]["model"] == "gpt2" and "position.weight" in arrays
    capsys.readouterr()
    sample.main(["out/text-gpt2", "--prompt", "the", "--tokens", "30"])  # past its context of 16
    assert len(capsys.readouterr().out) == 3 + 30 + 1


def test_two_workers_train_as_one_does_and_a_resumed_run_may_change_their_number(folder, capsys):
    losses, words = [], ["--data", "text.txt", *SMALL, "--out"]
    for out, crews in (("one", "1"), ("two", "2"), ("mixed", "21")):
        for i, crew in enumerate(crews):
            resume = ["--resume"] if i else []
            steps = ["--steps", "6"] if i or len(crews) == 1 else ["--steps", "3"]
            schedule = ["--warmup", "6"]  # the rate must not depend on --steps
            train.main([*words, out, "--workers", crew, *resume, *steps, *schedule])
        printed = capsys.readouterr().out
        losses.append(float(re.findall(r"whole split: (\S+)", printed)[-1]))
        assert (", 2 workers" in printed) == ("2" in crews)
        assert checkpoint.load(f"{out}/last.safetensors")[1]["config"]["workers"] == int(crews[-1])
    assert losses == [losses[0]] * 3


def test_resume_refuses_what_would_be_another_model(folder, trained, capsys):
    words = ["--resume", "--out", str(trained), "--n-layer"]
    error = mistake(train.main, [*words, "2"], capsys, trained)
    assert error.startswith("train.py: --n-layer: this run has 1, got 2;")
    train.main([*words, "1"])  # which it has


def test_resume_refuses_another_text(folder, trained, capsys):
    shifted = TEXT.translate({n: n + 1 for n in range(ord("a"), ord("z") + 1)})  # the same ids
    for other in (TEXT.replace("fox", "box"), shifted):
        Path("text.txt").write_text(other)
        words = ["--resume", "--out", str(trained), "--data", "text.txt"]
        assert "--data: not what this run has read" in mistake(train.main, words, capsys, trained)


def test_a_run_without_a_validation_yet_can_write(folder, trained, capsys):
    shutil.copytree(trained, "run")
    Path("run/best.safetensors").unlink()
    sample.main(["run", "--prompt", "the ", "--tokens", "3"])
    assert len(capsys.readouterr().out) == len("the ") + 3 + 1


def test_a_damaged_best_checkpoint_of_a_finished_run_is_told_in_one_line(folder, trained, capsys):
    shutil.copytree(trained, "run")
    whole = Path("run/best.safetensors").read_bytes()
    Path("run/best.safetensors").write_bytes(whole[:500])
    words = ["--resume", "--out", "run", "--data", "text.txt"]
    assert "best.safetensors: damaged" in mistake(train.main, words, capsys, folder)


def test_a_folder_with_files_is_kept_unless_overwrite_is_said(folder, trained, capsys):
    shutil.copytree(trained, "run")
    Path("run/notes.txt").write_text("mine")
    words = ["--data", "text.txt", "--out", "run", *SMALL, "--seed", "2"]
    error = mistake(train.main, words, capsys, folder)
    assert "--resume" in error and "--overwrite" in error
    train.main([*words, "--overwrite"])
    assert Path("run/log.csv").read_text().count("\n") == 3  # a head and two rows
    for name in ("last", "best"):
        assert checkpoint.load(f"run/{name}.safetensors")[1]["config"]["seed"] == 2
    assert Path("run/notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "words", ["--learning-rate 1e30 --warmup 0", "--n-embd 4000000 --n-head 1", "--n-head 3"]
)
def test_a_run_that_fails_before_its_first_checkpoint_replaces_nothing(
    folder, trained, capsys, words
):
    shutil.copytree(trained, "run")
    words = ["--data", "text.txt", "--out", "run", "--overwrite", *SMALL, *words.split()]
    mistake(train.main, words, capsys, folder)


def test_a_folder_that_cannot_be_written_is_told_before_the_first_step(folder, capsys, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SystemExit):
        train.main(["--data", "text.txt", "--out", "run", *SMALL])
    printed = capsys.readouterr()
    expected = "--out: cannot save in run: No space left on device; free space, or name another"
    assert expected in printed.err and "4 train" not in printed.out
    assert not Path("run").exists()


def test_resume_refuses_to_end_before_it_begins(folder, trained, capsys):
    words = ["--resume", "--out", str(trained), "--data", "text.txt", "--steps", "1"]
    assert "--steps: expected at least" in mistake(train.main, words, capsys, trained)


def test_options_are_not_abbreviated(folder, capsys):
    words = ["--data", "text.txt", "--step", "1"]
    assert "unknown option --step; did you mean --steps?" in mistake(
        train.main, words, capsys, folder
    )


def test_a_chinese_text_trains_and_samples(folder, capsys):
    poem = "床前明月光，疑是地上霜。\n举头望明月，低头思故乡。\n"
    Path("诗.txt").write_text(poem * 10, encoding="utf-8")
    train.main(["--data", "诗.txt", *SMALL])
    capsys.readouterr()
    sample.main(["--prompt", "明月", "--tokens", "30"])
    written = capsys.readouterr().out
    assert written.startswith("明月") and len(written) == 33 and set(written) <= set(poem)


# sampling


def said(capsys, *words):
    capsys.readouterr()
    sample.main([str(word) for word in words])
    return capsys.readouterr()


def test_a_prompt_is_continued_by_as_many_characters_as_asked(trained, capsys):
    written = said(capsys, trained, "--prompt", "the ", "--tokens", 20)
    assert written.out.startswith("the ") and written.err == ""
    assert len(written.out) == 4 + 20 + 1 and set(written.out) <= set(TEXT + "\n")


def test_a_prompt_may_come_through_standard_input(trained, capsys, monkeypatch):
    expected = said(capsys, trained, "--prompt", "old cats", "--tokens", 20).out
    monkeypatch.setattr("sys.stdin", io.StringIO("old cats\n"))
    assert said(capsys, trained, "--tokens", 20).out == expected
    process = child("sample.py", str(trained), "--tokens", "20", input=b"old cats\n")
    assert (process.returncode, process.stdout.decode(), process.stderr) == (0, expected, b"")


def test_count_writes_that_many_different_samples(trained, capsys):
    lines = said(capsys, trained, "--prompt", "the", "--count", 3, "--tokens", 20).out.splitlines()
    assert lines[1::2] == ["-" * 15] * 2  # between two texts
    lines = lines[::2]
    assert [len(line) for line in lines] == [23] * 3 and len(set(lines)) == 3
    assert {line[:3] for line in lines} == {"the"}


def test_samples_are_drawn_in_batches_that_fit_into_memory(trained, capsys, monkeypatch):
    sizes, left_pad = [], generate.left_pad
    monkeypatch.setattr(
        generate, "left_pad", lambda prompts: sizes.append(len(prompts)) or left_pad(prompts)
    )
    words = trained, "--prompt", "the", "--tokens", 20, "--count"
    lines = said(capsys, *words, TOGETHER + 3).out.splitlines()[::2]
    assert sizes == [TOGETHER, 3] and len(set(lines)) == TOGETHER + 3
    assert {(line[:3], len(line)) for line in lines} == {("the", 23)}


def test_the_first_of_several_samples_is_printed_as_it_is_drawn(trained, monkeypatch):
    printed, drawn = [], []  # the length of what has been printed whenever a token is drawn
    monkeypatch.setattr("builtins.print", lambda *words, **_: printed.extend(words))
    choose = generate.choose

    def noted(*how, **options):
        drawn.append(len("".join(printed)))
        return choose(*how, **options)

    monkeypatch.setattr(generate, "choose", noted)
    sample.main([str(trained), "--prompt", "the", "--tokens", "5", "--count", "3"])
    assert drawn == [3, 4, 5, 6, 7] and len("".join(printed)) == 3 * 8 + 2 * 15


def test_writing_ends_before_the_stop(trained, capsys):
    words = trained, "--prompt", "the", "--tokens", 200, "--stop"
    whole = said(capsys, *words, "#").out.removeprefix("the")
    stop = whole[50:52]
    assert said(capsys, *words, stop).out == "the" + whole.partition(stop)[0] + "\n"


def test_unknown_characters_are_named_and_left_out(trained, capsys):
    plain = said(capsys, trained, "--prompt", "the", "--tokens", 20)
    odd = said(capsys, trained, "--prompt", "Zt☃hZe", "--tokens", 20)
    assert odd.out == plain.out
    assert odd.err == f"sample.py: left out, unknown to {trained}: 'Z☃'\n"


def test_interactive_answers_line_by_line_until_the_input_ends(trained, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("fox\nthe\n"))
    lines = said(capsys, trained, "--interactive", "--tokens", 10).out.split("\n")
    assert [line[:5] for line in lines] == ["> fox", "> the", "> ", ""]
    assert [len(line) for line in lines] == [15, 15, 2, 0]


def test_without_a_prompt_the_model_begins_by_itself(trained, capsys):
    assert len(said(capsys, trained, "--prompt", "", "--tokens", 20).out) == 21


def test_a_model_of_another_version_is_told_in_one_line(folder, trained, capsys, monkeypatch):
    monkeypatch.delitem(nn.MODELS, "gpt")
    error = mistake(sample.main, [str(trained), "--prompt", "the"], capsys, folder)
    assert "model: expected a known name, got 'gpt'; did you mean gpt2?" in error


def test_a_folder_means_the_best_checkpoint_in_it(folder, trained, capsys):
    shutil.copytree(trained, "run")
    Path("run/last.safetensors").write_text("damaged")
    words = "--prompt", "the", "--tokens", 20
    assert said(capsys, "run", *words).out == said(capsys, trained / "best.safetensors", *words).out


def test_without_a_name_the_newest_run_in_out_is_read(folder, trained, capsys):
    for name, time in (("old", 1e9), ("new", 1.2e9), ("older", 0.9e9)):
        shutil.copytree(trained, f"out/{name}")
        if name != "new":
            Path(f"out/{name}/best.safetensors").write_text("damaged")
        os.utime(f"out/{name}/best.safetensors", (time, time))
    assert said(capsys, "--prompt", "the", "--tokens", 5).out.startswith("the")


def test_a_reader_that_has_seen_enough_gets_no_traceback(trained):
    command = [sys.executable, str(ROOT / "sample.py"), str(trained), "--prompt", "the"]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*command, "--tokens", "100000"], **pipe) as process:
        assert process.stdout.read(3) == b"the"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 0


# mistakes


@pytest.fixture
def mess(folder, trained):
    """All that can be wrong with files."""
    Path("empty.txt").write_text(" \n")
    Path("latin.txt").write_bytes("one\ntwo\ncafé".encode("latin-1"))
    Path("short.txt").write_text("abc" * 53)
    for name in ("cut", "text", "foreign", "none"):
        Path(name).mkdir()
    whole = (trained / "best.safetensors").read_bytes()
    for name in ("last", "best"):
        Path(f"cut/{name}.safetensors").write_bytes(whole[: len(whole) // 2])
        Path(f"text/{name}.safetensors").write_text(TEXT)
        save_file({"x": np.zeros(3)}, f"foreign/{name}.safetensors")
    return folder


TRAINING = [
    ("--workers 1000 --batch-size 1000", "--workers: expected at most"),
    ("--workers 5 --batch-size 4", "at most 4, --batch-size / --accumulate"),
    ("--workers 3 --batch-size 4 --accumulate 2", "at most 2, --batch-size / --accumulate"),
    ("--data missing.txt", "missing.txt: expected a text file, found nothing"),
    ("--data manul", "did you mean manual?"),
    ("--data empty.txt", "empty.txt: expected text, got an empty file"),
    ("--data latin.txt", "latin.txt: expected UTF-8 text, got byte 0xe9 in line 3"),
    ("--data short.txt --block-size 16", "more than 160 characters"),
    ("--data none", "none: expected MNIST's four files, or a subfolder for each class"),
    ("--data text.txt --n-embd 18 --n-head 4", "try 24"),
    (
        "--data text.txt --block-size 16 --n-embd 4000000 --n-head 1",
        "model: expected weights, gradients and moments within ",
    ),  # 192 TB: no machine has
    (
        "--data text.txt --steps 0",
        "--steps: expected a whole number >= 1 and < 2147483648, got '0'",
    ),
    ("--data text.txt --learning-rate nan", "--learning-rate"),
    ("--data text.txt --accumulate 5", "divisor of --batch-size 8, got 5"),
    ("--data text.txt --minutes 1 --steps 5", "expected --minutes or --steps, got both"),
    ("--data text.txt --minutes 0", "--minutes: expected a number > 0, got '0'"),
    (
        "--data text.txt --block-size 16 --n-embd 18 --n-head 6",
        "expected heads of an even width, got 18 / 6 = 3",
    ),
    ("--data text.txt --n-layers 2", "unknown option --n-layers; did you mean --n-layer?"),
    ("--data text.txt --model gtp", "--model"),
    ("--data text.txt --out text.txt", "--out: expected a folder, text.txt is a file"),
    ("--data text.txt --device gpu", "device gpu: CuPy is not installed"),
    ("--data text.txt --resume --overwrite", "not allowed with"),
    ("--resume --out none", "none/last.safetensors: expected a checkpoint, found no file"),
    ("--resume --out text.txt", "expected a checkpoint, found no file"),
    ("--resume --out cut", "cut/last.safetensors: damaged"),
    ("--resume --out text", "text/last.safetensors: damaged"),
    ("--resume --out foreign", "not written by minigpt"),
]
SAMPLING = [
    ("", "run train.py first"),
    ("missing", "missing: expected a checkpoint, found no file"),
    ("none", "none/last.safetensors: expected a checkpoint"),
    ("text.txt", "text.txt: damaged"),
    ("cut", "cut/best.safetensors: damaged"),
    ("foreign/last.safetensors", "not written by minigpt"),
    ("RUN --top-p 1.5", "--top-p: expected a number > 0 and <= 1, got '1.5'"),
    ("RUN --promt the", "unknown option --promt; did you mean --prompt?"),
    ("RUN --device gpu", "device gpu: CuPy is not installed"),
]


@pytest.mark.parametrize("line, expected", TRAINING)
def test_a_mistake_in_training_is_told_in_one_line(mess, monkeypatch, capsys, line, expected):
    monkeypatch.setitem(sys.modules, "cupy", None)  # a GPU in this machine does not count
    error = mistake(train.main, line.split(), capsys, mess)
    assert error.startswith("train.py: ") and expected in error


@pytest.mark.parametrize("line, expected", SAMPLING)
def test_a_mistake_in_sampling_is_told_in_one_line(
    mess, trained, monkeypatch, capsys, line, expected
):
    monkeypatch.setitem(sys.modules, "cupy", None)
    error = mistake(sample.main, line.replace("RUN", str(trained)).split(), capsys, mess)
    assert error.startswith("sample.py: ") and expected in error


def test_bytes_that_are_no_text_are_named_and_left_out(trained):
    process = child("sample.py", str(trained), "--tokens", "5", input=b"the \xe9")
    assert process.returncode == 0 and process.stdout.startswith(b"the ")
    expected = f"sample.py: left out, unknown to {trained}: '\ufffd'\n"
    assert process.stderr.decode() == expected


def test_a_loss_that_explodes_is_told_in_one_line(folder, capsys):
    with pytest.raises(SystemExit) as caught:
        train.main(["--data", "text.txt", *SMALL, "--learning-rate", "1e30", "--warmup", "0"])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.count("\n") == 1
    assert re.match(r"train.py: step \d: loss nan, .* not finite; .*--learning-rate", error)
