"""train.py and sample.py on images, sounds and tables, and on every family of language models."""

import csv
import io
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_cli import TEXT, mistake, tree
from test_tables import class_folders, csv_of, idx, write_mnist, write_wav

import sample
import train
from minigpt.applications.options import fitted
from minigpt.datasets.signals import MNIST
from minigpt.training import checkpoint
from minigpt.training.config import Config
from minigpt.training.defaults import DEFAULTS

FEW = "--steps 4 --eval-every 2 --n-layer 1 --n-embd 16 --n-head 2".split()
STEPS = "1 preprocess", "2 build", "3 initialise", "4 train", "5 validate", "6 apply"
HEADER = "age,job,class"
ROWS = [f"{20 + i},{'abc'[i % 3]},{('no', 'yes')[i % 2]}" for i in range(20)]

RUNS = {  # the folder's name in out/, and what train.py is told
    "digits-conv": "--data digits --model conv",
    "credit-gpt": "--data credit",
    "table-lstm": "--data table.csv --target class --model lstm",
    "images-gpt": "--data images",
    "sounds_of-gru": "--data sounds_of --model gru",
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with a text, a table, images and sounds in it."""
    furnish(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def furnish(folder):
    (folder / "text.txt").write_text(TEXT)
    csv_of(folder / "table.csv", 40)
    for name, shape in (("images", (8, 6)), ("sounds_of", (200,))):
        (folder / name).mkdir()
        class_folders(folder / name, shape, n=6)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of all runs above and what they printed, to be read only."""
    folder, printed = tmp_path_factory.mktemp("trained"), {}
    furnish(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, words in RUNS.items():
            lines = []
            patch.setattr("builtins.print", lambda *a, lines=lines, **_: lines.append(a))
            train.main([*words.split(), *FEW])
            printed[name] = "\n".join(" ".join(map(str, a)) for a in lines)
    return folder, printed


def said(capsys, *words):
    capsys.readouterr()
    sample.main([str(word) for word in words])
    return capsys.readouterr()


def table_of(out):
    """What --input prints -> names of the columns, likeliest classes, probabilities (N, K)"""
    head, *rows = [line.split(",") for line in out.splitlines()]
    return head, [row[0] for row in rows], np.array([row[1:] for row in rows], float)


KINDS = ["text", "image", "sound", "table"]
every_run = pytest.mark.parametrize("name", RUNS)


# training


@every_run
def test_a_classifier_goes_through_the_six_steps(trained, name):
    printed = trained[1][name]
    assert tuple(re.findall(r"^\d \w+", printed, re.M)) == STEPS
    for words in ("classes; train / validation / test", "to beat: always", "held out: accuracy"):
        assert words in printed


@every_run
def test_a_classifier_leaves_two_checkpoints_a_log_and_its_curve(trained, name):
    run = trained[0] / "out" / name
    files = "best.safetensors", "last.safetensors", "log.csv", "curve.svg"
    assert tree(run).keys() == {run / file for file in files}
    assert checkpoint.load(run / "last.safetensors")[1]["state"]["step"] == 4
    assert (run / "log.csv").read_text().count("\n") == 3


@pytest.mark.parametrize("kind, model", [(k, m) for k in KINDS for m in ("gpt", "lstm", "conv")])
def test_defaults_are_those_of_the_model_over_those_of_the_kind_of_data(kind, model):
    expected = DEFAULTS.get((kind, ""), {}) | DEFAULTS.get((kind, model), {})
    config = vars(fitted(kind, {"model": model}))
    assert config == vars(Config()) | {"model": model} | expected


def test_what_is_given_goes_before_every_default_and_minutes_before_steps():
    config = fitted("image", {"model": "conv", "batch_size": 7, "minutes": 2.0})
    assert (config.batch_size, config.minutes, config.steps) == (7, 2.0, None)


def test_the_checkpoint_of_a_run_has_the_defaults_it_was_trained_with(trained):
    about = checkpoint.load(trained[0] / "out/credit-gpt/last.safetensors")[1]
    given = {"data": ["credit"], "steps": 4, "eval_every": 2, "n_layer": 1, "n_embd": 16}
    given |= {"n_head": 2, "model": "gpt", "workers": 1}
    assert about["config"] == vars(fitted("table", given)) | {"out": None}


def until(step, self, whole=train.Trainer.train_step):
    """train_step of a run that Ctrl-C meets in the step after `step`"""
    self.stopped = self.stopped or self.step == step
    return whole(self)


SMALL = "--n-layer 2 --n-embd 16 --n-head 2 --batch-size 4 --steps 7 --eval-every 3 --dropout 0.1"
RESUMED = {
    "digits conv": "--data digits --model conv",
    "images gpt": "--data images",
    "a table lstm": "--data table.csv --target class --model lstm",
    "sounds rnn": "--data sounds_of --model rnn",
    "a text conv": "--data text.txt --model conv --block-size 16",
    "a text lstm": "--data text.txt --model lstm --block-size 16",
    "a text gru": "--data text.txt --model gru --block-size 16",
}


def stop_and_resume(words, monkeypatch, capsys):
    """Train 7 steps, once undisturbed and once stopped in the middle: the files are the same."""
    train.main([*words, "--out", "whole"])
    with monkeypatch.context() as patch:
        patch.setattr(train.Trainer, "train_step", lambda self: until(4, self))
        train.main([*words, "--out", "my run"])
    last = capsys.readouterr().out.splitlines()[-1]
    command = re.search(r"stopped after step 5; continue: python train.py (.*)", last)
    train.main(shlex.split(command[1]))
    assert "continues after step 5 of 7" in capsys.readouterr().out
    for name in ("last", "best"):
        files = [Path(run, f"{name}.safetensors").read_bytes() for run in ("whole", "my run")]
        assert files[0] == files[1]


@pytest.mark.parametrize("words", RESUMED.values(), ids=RESUMED)
def test_a_run_stopped_and_resumed_ends_as_if_it_had_not_been(place, monkeypatch, capsys, words):
    if "text" in words:
        monkeypatch.setattr(train, "CACHE", place)
    stop_and_resume([*words.split(), *SMALL.split()], monkeypatch, capsys)


def test_a_classifier_may_go_on_for_longer(place, trained, capsys):
    shutil.copytree(trained[0] / "out/digits-conv", "run")
    train.main(["--resume", "--out", "run", "--steps", "6"])
    assert "continues after step 4 of 6" in capsys.readouterr().out
    assert checkpoint.load("run/last.safetensors")[1]["state"]["step"] == 6


def test_resume_refuses_other_examples(place, trained, capsys):
    shutil.copytree(trained[0] / "out/table-lstm", "run")
    csv_of(Path("table.csv"), 44)
    error = mistake(train.main, ["--resume", "--out", "run"], capsys, place)
    assert "--data: not what this run has read" in error


def test_resume_refuses_another_target(place, trained, capsys):
    shutil.copytree(trained[0] / "out/table-lstm", "run")
    words = ["--resume", "--out", "run", "--target", "job"]
    assert "--target: this run has class, got job" in mistake(train.main, words, capsys, place)


@pytest.mark.parametrize("model", ["lstm", "gru", "rnn", "conv"])
def test_every_family_writes_beyond_its_block_size(place, monkeypatch, capsys, model):
    monkeypatch.setattr(train, "CACHE", place)
    train.main(["--data", "text.txt", *FEW, "--block-size", "8", "--model", model])
    written = said(capsys, "--prompt", "the ", "--tokens", 30)
    assert len(written.out) == 4 + 30 + 1 and set(written.out) <= set(TEXT + "\n")


def test_images_of_two_brightnesses_are_soon_told_apart(place, capsys):
    train.main(["--data", "images", *FEW, "--steps", "60", "--eval-every", "60"])
    assert "held out: accuracy 100.00% of 4" in capsys.readouterr().out


# sampling


@every_run
def test_sample_prints_the_report_that_training_printed(trained, name, capsys, monkeypatch):
    folder, printed = trained
    monkeypatch.chdir(folder)
    report = said(capsys, f"out/{name}")
    lines = report.out.splitlines()
    assert re.match(r"accuracy \d+\.\d\d% of \d+$", lines[0]) and report.err == ""
    first, *rest = printed[name].partition("held out: ")[2].splitlines()
    assert lines[0] == first and [line[15:] for line in rest[: len(lines) - 1]] == lines[1:]


def test_the_report_of_two_classes_has_a_cut_and_that_of_credit_an_audit(
    trained, capsys, monkeypatch
):
    monkeypatch.chdir(trained[0])
    report = said(capsys, "out/credit-gpt").out
    assert re.search(r"^AUC 0\.\d{4}; bad if above 0\.\d{3}: sensitivity", report, re.M)
    assert re.search(r"^age_in_years +rows +errors", report, re.M)


@pytest.mark.parametrize("change", [(r"(2\d),b", r"\1,e"), ("yes", "oui")])
def test_a_report_on_other_features_or_classes_is_refused_in_one_line(
    place, trained, capsys, change
):
    Path("table.csv").write_text(re.sub(*change, Path("table.csv").read_text()))
    words = [str(trained[0] / "out/table-lstm"), "--data", "table.csv"]
    error = mistake(sample.main, words, capsys, place)
    need = "not what this run has read; restore it, or name it with --data"
    assert error == f"sample.py: table.csv: {need}\n"


def inputs(folder):
    """{run: a file for --input, of 3 examples, or of one sound}"""
    rng = np.random.default_rng(0)
    csv_of(folder / "new.csv", 3)
    np.save(folder / "digits.npy", rng.random((3, 8, 8)))
    np.save(folder / "images.npy", rng.random((3, 8, 6)))
    np.save(folder / "sounds.npy", rng.random((3, 150)))
    return dict(zip(("table-lstm", "digits-conv", "images-gpt", "sounds_of-gru"), (
        "new.csv", "digits.npy", "images.npy", "sounds.npy"), strict=True))  # fmt: skip


@pytest.mark.parametrize("name", ["table-lstm", "digits-conv", "images-gpt", "sounds_of-gru"])
def test_input_prints_a_row_of_probabilities_for_each_example(place, trained, name, capsys):
    printed = said(capsys, trained[0] / "out" / name, "--input", inputs(place)[name])
    head, likeliest, p = table_of(printed.out)
    assert head[0] == "likeliest" and len(p) == 3 and printed.err == ""
    np.testing.assert_allclose(p.sum(1), 1, atol=5.1e-5 * len(head))  # four decimals
    columns = [head.index(name) - 1 for name in likeliest]
    assert (p[range(3), columns] == p.max(1)).all()  # as printed, two may be equal


def test_categories_unseen_in_training_are_named_on_standard_error(place, trained, capsys):
    Path("new.csv").write_text("age,job\n30,a\n31,pilot\n32,pilot\n33,judge\n")
    printed = said(capsys, trained[0] / "out/table-lstm", "--input", "new.csv")
    new = "judge (1 rows), pilot (2 rows)"
    assert printed.err == f"sample.py: new.csv: column job: not seen in training: {new}\n"
    assert len(table_of(printed.out)[2]) == 4


def test_further_columns_of_input_are_left_aside(place, trained, capsys):
    run = trained[0] / "out/table-lstm"
    rows = {}
    for name, header, more in (("plain", "age,job", ""), ("more", "age,job,x", ",?")):
        Path(f"{name}.csv").write_text(f"{header}\n30,a{more}\n31,b{more}\n")
        rows[name] = said(capsys, run, "--input", f"{name}.csv").out
    assert rows["plain"] == rows["more"]


def test_a_class_whose_name_has_a_comma_stays_one_cell(place, capsys):
    rows = [f'{i},{("no", """ "yes, sir" """.strip())[i % 2]}' for i in range(20)]
    Path("odd.csv").write_text("\n".join(["age,class", *rows]))
    train.main(["--data", "odd.csv", "--target", "class", *FEW])
    lines = said(capsys, "out/odd-gpt", "--input", "odd.csv").out.splitlines()
    head, *rows = csv.reader(lines)
    assert head == ["likeliest", "no", "yes, sir"] and {len(row) for row in rows} == {3}


# mistakes


def bad_csv(*rows, header=HEADER):
    return lambda path: path.write_text("\n".join([header, *rows]))


def bad_mnist(changes):
    def write(path):
        path.mkdir()
        write_mnist(path, changes)

    return write


def changed(i, row):
    return [*ROWS[:i], row, *ROWS[i + 1 :]]


TOO_MANY = [f"{20 + i},{'abc'[i % 3]},{i / 7:.3f}" for i in range(130)]
TRAINING = {  # what is at "bad", and after that name in --data, -> words of the error
    "no header": (".csv", bad_csv(*(f"{i},{i % 2}" for i in range(20)), header="1,2"),
                  "--target 2", "line 1: expected names of columns, got numbers"),
    "ragged row": (".csv", bad_csv(*changed(6, "26,a")), "--target class",
                   "line 8: expected 3 cells, got 2"),
    "no target": (".csv", bad_csv(*ROWS), "", "expected --target COLUMN, got none; add it"),
    "absent target": (".csv", bad_csv(*ROWS), "--target clas", "did you mean class?"),
    "one class": (".csv", bad_csv(*(f"{i},a,yes" for i in range(20))), "--target class",
                  "expected two classes or more, got only yes"),
    "amounts": (".csv", bad_csv(*TOO_MANY), "--target class",
                "column class: expected 20 numbers at most, got 130"),
    "infinity": (".csv", bad_csv(*changed(6, "inf,a,no")), "--target class",
                 "line 8, column age: expected a number, got inf"),
    "no class in a row": (".csv", bad_csv(*changed(6, "26,a,")), "--target class",
                          "column class: expected a class in each row, got 1 rows without"),
    "empty csv": (".csv", lambda path: path.write_text(""), "--target class", "bad.csv"),
    "half of MNIST": ("", bad_mnist({MNIST[2]: None, MNIST[3]: None}), "",
                      "expected MNIST's four files, got no t10k-images-idx3-ubyte, t10k-labels"),
    "labels": ("", bad_mnist({MNIST[1]: idx(np.arange(20))}), "",
               "expected labels from 0 to 9, got 19"),
}  # fmt: skip


@pytest.mark.parametrize("suffix, write, words, expected", TRAINING.values(), ids=TRAINING)
def test_bad_examples_are_told_in_one_line(place, capsys, suffix, write, words, expected):
    write(place / f"bad{suffix}")
    words = ["--data", f"bad{suffix}", *words.split(), *FEW]
    error = mistake(train.main, words, capsys, place)
    assert error.startswith("train.py: ") and expected in error


@pytest.mark.parametrize(
    "words, expected",
    [
        ("--data text.txt --target class", "--target class: expected a .csv file in --data"),
        ("--data credit --target job", "--target job: expected a .csv file in --data, got credit"),
        ("--data digits --model gpt2", "--model: expected gpt, lstm, gru, rnn or conv"),
        ("--data digits text.txt", "--data: expected one name of examples, got digits text.txt"),
        ("--data text.txt digits", "--data: expected one name of examples, got text.txt digits"),
        ("--data digit", "did you mean digits?"),
        (
            "--data table.csv",
            "expected --target COLUMN, got none; add it with a column, say of age",
        ),
        ("--data missing.csv --target class", "missing.csv: expected a file or folder"),
        ("--data table.csv --target class --n-head 3", "multiple of n_head = 3"),
        ("--data digits --n-embd 4000000", "Unable to allocate"),
    ],
)
def test_words_that_do_not_fit_examples_are_told_in_one_line(place, capsys, words, expected):
    error = mistake(train.main, words.split(), capsys, place)
    assert error.startswith("train.py: ") and expected in error


def test_an_array_that_is_no_example_is_told_in_one_line(place, trained, capsys):
    run = trained[0] / "out/digits-conv"
    np.save("large.npy", np.zeros((3, 9, 9)))
    np.save("words.npy", np.array(["a", "b"]))
    for name, expected in (
        ("large.npy", "large.npy: expected images of 8 x 8, got 3 x 9 x 9"),
        ("words.npy", "words.npy: expected numbers in .npy"),
        ("missing.npy", "missing.npy"),
        ("table.csv", "table.csv"),
    ):
        error = mistake(sample.main, [str(run), "--input", name], capsys, place)
        assert error.startswith("sample.py: ") and expected in error


def test_an_array_is_no_table_and_that_is_told_in_one_line(place, trained, capsys):
    np.save("new.npy", np.zeros(3))
    run = str(trained[0] / "out/table-lstm")
    error = mistake(sample.main, [run, "--input", "new.npy"], capsys, place)
    assert "new.npy: expected UTF-8 text, got byte 0x93 in line 1" in error


@pytest.mark.parametrize("name", ["table-lstm", "images-gpt", "sounds_of-gru"])
@pytest.mark.parametrize("there, got", [("images", "a folder, a device or a pipe; name a file"),
                                        ("none.npy", "nothing; check the path")])  # fmt: skip
def test_input_that_is_no_file_is_told_in_one_line(place, trained, capsys, name, there, got):
    words = [str(trained[0] / "out" / name), "--input", there]
    error = mistake(sample.main, words, capsys, place)
    assert error == f"sample.py: --input {there}: expected a file, got {got}\n"


def test_a_sound_of_another_rate_is_told_in_one_line(place, capsys, trained):
    write_wav(Path("fast.wav"), np.arange(200), rate=16000)
    run = trained[0] / "out/sounds_of-gru"
    error = mistake(sample.main, [str(run), "--input", "fast.wav"], capsys, place)
    assert "fast.wav: expected None samples per second, got 16000" in error


def test_a_table_without_a_column_of_training_is_told_in_one_line(place, trained, capsys):
    Path("new.csv").write_text("age,work\n30,a\n31,b\n")
    run = trained[0] / "out/table-lstm"
    error = mistake(sample.main, [str(run), "--input", "new.csv"], capsys, place)
    assert "new.csv: column job: expected one of this name, got age, work; add it" in error


def test_input_on_a_model_that_writes_is_refused_in_one_line(place, monkeypatch, capsys):
    monkeypatch.setattr(train, "CACHE", place)
    train.main(["--data", "text.txt", *FEW, "--block-size", "8"])
    capsys.readouterr()
    error = mistake(sample.main, ["out/text-gpt", "--input", "table.csv"], capsys, place)
    assert error == "sample.py: --input: expected a classifier, out/text-gpt writes; use --prompt\n"


OF_WRITING = [("--tokens", "9"), ("--temperature", "0.8"), ("--top-k", "3"), ("--top-p", "1"),
              ("--stop", "x"), ("--count", "1"), ("--seed", "1337")]  # fmt: skip


@pytest.mark.parametrize("option", OF_WRITING)
@pytest.mark.parametrize("mode", [("--input", "table.csv"), ("--look",), ("--explain", "a"), ()])
def test_an_option_of_writing_is_refused_where_nothing_is_written(
    place, trained, capsys, option, mode
):
    words = [str(trained[0] / "out/table-lstm"), *mode, *option]
    error = mistake(sample.main, words, capsys, place)
    got = f"{mode[0]}, which writes none; leave one out" if mode else "the report; leave it out"
    assert error == f"sample.py: {option[0]}: expected a text to write, got {got}\n"


def test_the_report_of_a_run_that_answers_refuses_an_option_of_writing(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("a.tsv").write_text("".join(f"{i}\t{i}\n" for i in range(60)))
    train.main(["--data", "a.tsv", *FEW])
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    error = mistake(sample.main, ["out/a-gpt", "--count", "2"], capsys, tmp_path)
    assert error == "sample.py: --count: expected a text to write, got the report; leave it out\n"
    sample.main(["out/a-gpt", "--prompt", "7", "--count", "2"])
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize("word", [("--prompt", "x"), ("--interactive",)])
def test_a_classifier_refuses_a_prompt_in_one_line(place, trained, capsys, word):
    error = mistake(sample.main, [str(trained[0] / "out/table-lstm"), *word], capsys, place)
    assert error.startswith("sample.py: --prompt: expected a model that writes,")


def test_a_width_need_not_fit_heads_that_a_model_does_not_have(place, capsys):
    words = "--data text.txt --model lstm --steps 1 --n-layer 1 --n-embd 30 --block-size 8".split()
    train.main(words)
    assert "30 wide" in capsys.readouterr().out
    error = mistake(train.main, [*words[:3], "gpt", *words[4:], "--out", "new"], capsys, place)
    assert error.startswith("train.py: n_embd: expected a multiple of n_head = 4, got 30")
