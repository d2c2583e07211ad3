"""train.py and sample.py on questions and pairs, and on texts of byte pairs."""

import contextlib
import io
import re
import shlex
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from test_cli import TEXT, child, mistake, said, tree
from test_cli_classify import STEPS, stop_and_resume

import sample
import train
from minigpt.applications import answering
from minigpt.datasets import tasks
from minigpt.training import checkpoint, scores

FEW = "--steps 4 --eval-every 2 --n-layer 1 --n-embd 16 --n-head 2".split()
LINES = [f"{w} {i}\t{a}" for i in range(30) for w, a in (("yes", "oui"), ("no", "non!"))]
MODELS = ["gpt", "lstm", "conv"]
every_model = pytest.mark.parametrize("model", MODELS)
BPE = "--data text.txt --tokenizer bpe --vocab-size 300 --block-size 16".split()


@pytest.fixture
def place(tmp_path, tmp_path_factory, monkeypatch):
    """A working folder with pairs and a text in it; what train.py caches goes elsewhere."""
    furnish(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "CACHE", tmp_path_factory.mktemp("cache"))
    return tmp_path


def furnish(folder):
    (folder / "pairs.tsv").write_text("\n".join(LINES) + "\n")
    (folder / "text.txt").write_text(TEXT)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of runs that have learned the pairs, and what they printed; to be read only."""
    folder, printed = tmp_path_factory.mktemp("trained"), {}
    furnish(folder)
    shape = "--steps 150 --eval-every 50 --n-layer 2 --n-embd 32 --n-head 2 --block-size 16".split()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for model in MODELS:
            with contextlib.redirect_stdout(io.StringIO()) as out:
                train.main(["--data", "pairs.tsv", "--model", model, *shape])
            printed[model] = out.getvalue()
    return folder, printed


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of a run on a text of byte pairs, and what it printed; to be read only."""
    folder = tmp_path_factory.mktemp("written")
    furnish(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(train, "CACHE", folder)
        with contextlib.redirect_stdout(io.StringIO()) as out:
            train.main([*BPE, *FEW])
    return folder, out.getvalue()


def piped(monkeypatch, text):
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


# training


@every_model
def test_a_run_on_pairs_goes_through_the_six_steps(trained, model):
    printed = trained[1][model]
    assert tuple(re.findall(r"^\d \w+", printed, re.M)) == STEPS
    for words in (
        "examples of 12 tokens at most; train / validation / test 48 / 6 / 6",
        "nats per token of the answers",
        "held out: exact match 100.0% of 6",
    ):
        assert words in printed


@every_model
def test_a_run_on_pairs_leaves_two_checkpoints_a_log_and_its_curve(trained, model):
    run = trained[0] / "out" / f"pairs-{model}"
    files = {"best.safetensors", "last.safetensors", "log.csv", "curve.svg"}
    assert tree(run).keys() == {run / name for name in files}


def test_the_first_loss_on_answers_is_about_the_printed_uniform(place, capsys):
    train.main(["--data", "pairs.tsv", *FEW])
    printed = capsys.readouterr().out
    first, uniform = map(float, re.search(r"first loss (\S+) \(uniform (\S+)\)", printed).groups())
    assert uniform == pytest.approx(np.log(len(set("".join(LINES) + "\n"))), abs=6e-4)
    assert first == pytest.approx(uniform, rel=0.05)


@pytest.mark.parametrize("data", ["qa", "translation"])
def test_generated_tasks_train_answer_and_report(place, capsys, monkeypatch, data):
    monkeypatch.setitem(tasks.TASKS, "qa", partial(tasks.stories, sizes=(60, 10, 20)))
    monkeypatch.setitem(tasks.TASKS, "translation", partial(tasks.numerals, each=100))
    train.main(["--data", data, *FEW])
    printed = capsys.readouterr().out
    question = shlex.split(re.search(r"next: python (sample.py .*)", printed)[1])
    report = printed.partition("6 apply        held out: ")[2].partition("\n" + " " * 15 + "next")[
        0
    ]
    piped(monkeypatch, "")
    assert said(capsys, question[1]).out.split() == report.split()
    assert said(capsys, *question[1:], "--tokens", 3).err == ""
    number = {"qa": r"\d+", "translation": "2,000"}[data]  # 2 to 4 questions at each stop
    assert re.match(rf"exact match \d+\.\d% of {number}\n", report)


def test_the_exact_answers_said_on_the_way_are_to_questions_of_all_lengths(place, monkeypatch):
    seen, whole = [], scores.exact
    monkeypatch.setitem(tasks.TASKS, "translation", partial(tasks.numerals, each=100))
    for module in (answering, scores):  # the second for what is held out
        noting = lambda *given: seen.append(given[1:]) or whole(*given)  # noqa: E731
        monkeypatch.setattr(module, "exact", noting)
    train.main(["--data", "translation", *FEW])
    tokenizer = sample.load("out/translation-gpt", np)[1].tokenizer
    numbers, *others = ({*tokenizer.decode(y[y >= 0]).split("\n ")} for _, y in seen)
    assert len(others) == 3 and numbers == others[0] == others[1] != others[2]  # the last: held out
    thousands = {"thousand" in words for words in numbers if words.isascii()}
    assert thousands == {True, False} == {"万" in n for n in numbers if not n.isascii()}


@pytest.mark.parametrize("words", ["--model lstm", "--tokenizer bpe --vocab-size 270"])
def test_a_run_stopped_and_resumed_ends_as_if_it_had_not_been(place, monkeypatch, capsys, words):
    words = ["--data", "pairs.tsv", *FEW, "--steps", "7", *words.split(), "--dropout", "0.1"]
    stop_and_resume(words, monkeypatch, capsys)


def test_resume_and_report_refuse_other_pairs(place, trained, capsys, monkeypatch):
    shutil.copytree(trained[0] / "out/pairs-gpt", "run")
    Path("pairs.tsv").write_text("\n".join(LINES).replace("oui", "ouf"))
    error = mistake(train.main, ["--resume", "--out", "run"], capsys, place)
    assert "--data: not what this run has read" in error
    piped(monkeypatch, "")
    assert "pairs.tsv: not what this run has read" in mistake(sample.main, ["run"], capsys, place)


def test_the_report_of_pairs_that_are_gone_is_told_in_one_line(place, trained, capsys, monkeypatch):
    shutil.copytree(trained[0] / "out/pairs-gpt", "run")
    Path("pairs.tsv").unlink()
    piped(monkeypatch, "")
    assert "pairs.tsv: expected a" in mistake(sample.main, ["run"], capsys, place)


# answering


@every_model
def test_an_answer_is_printed_alone(trained, capsys, model):
    run = trained[0] / "out" / f"pairs-{model}"
    for prompt, answer in (("yes 5", "oui\n"), ("  no  7 ", "non!\n")):
        printed = said(capsys, run, "--prompt", prompt)
        assert (printed.out, printed.err) == (answer, "")


def test_a_question_may_come_through_standard_input(trained, capsys, monkeypatch):
    piped(monkeypatch, "no 5\n")
    assert said(capsys, trained[0] / "out/pairs-gpt").out == "non!\n"
    process = child("sample.py", str(trained[0] / "out/pairs-gpt"), input=b"yes 5\n")
    assert (process.returncode, process.stdout, process.stderr) == (0, b"oui\n", b"")


@every_model
def test_interactive_answers_line_by_line(trained, capsys, monkeypatch, model):
    piped(monkeypatch, "yes 5\nno 7\n")
    printed = said(capsys, trained[0] / "out" / f"pairs-{model}", "--interactive")
    assert (printed.out, printed.err) == ("> oui\n> non!\n> \n", "")


@every_model
def test_sample_prints_the_report_that_training_printed(trained, capsys, monkeypatch, model):
    folder, printed = trained
    monkeypatch.chdir(folder)
    piped(monkeypatch, "")
    report = said(capsys, f"out/pairs-{model}")
    first, second, third = report.out.splitlines()
    assert (
        re.fullmatch(r"0\.\d{4} nats per token of the answers", third) and third in printed[model]
    )
    assert first == "exact match 100.0% of 6" and second.split() == ["pairs", "100.0%", "6"]
    assert first in printed[model] and second in printed[model] and report.err == ""


def test_an_answer_is_greedy_unless_a_temperature_is_given(place, capsys):
    train.main(["--data", "pairs.tsv", *FEW])  # so little that every token is about as likely
    words = ["out/pairs-gpt", "--prompt", "yes 5", "--count", 5, "--tokens", 8]
    assert len(set(said(capsys, *words).out.splitlines())) == 1
    assert len(set(said(capsys, *words, "--temperature", 0.8).out.splitlines())) > 1


def test_of_a_question_longer_than_the_context_what_is_kept_is_said(trained, capsys):
    run = trained[0] / "out/pairs-gpt"
    printed = said(capsys, run, "--prompt", "no 1 no 2 no 3 yes 1", "--tokens", 4)
    many = "the prompt has 22 tokens"  # a space, 20 characters, a tab
    assert printed.err == f"sample.py: {many}, {run} reads the last 16\n"
    assert printed.out.endswith("\n") and len(printed.out) > 1


def test_unknown_characters_in_a_question_are_named_and_left_out(trained, capsys):
    run = trained[0] / "out/pairs-gpt"
    printed = said(capsys, run, "--prompt", "yZes☃ 5Z")
    assert printed.err == f"sample.py: left out, unknown to {run}: 'Z☃'\n"
    assert printed.out == "oui\n"


# mistakes

BAD = [
    ("--data bad.tsv", "bad.tsv: line 4: expected a source, one tab, a target, got 'no tab here'"),
    ("--data two.tsv", "two.tsv: line 2: expected a source, one tab, a target"),
    ("--data few.tsv", "few.tsv: expected 10 different sources or more, got 9"),
    ("--data latin.tsv", "latin.tsv: expected UTF-8 text, got byte 0xe9 in line 2"),
    ("--data empty.tsv", "empty.tsv: expected text, got an empty file"),
    ("--data missing.tsv", "missing.tsv: expected a text file, found nothing; check the path"),
    ("--data pairs.tsv --block-size 11", "--block-size: expected at least 12, the longest example"),
    ("--data pairs.tsv --target x", "--target x: expected a .csv file in --data, got pairs.tsv"),
    ("--data pairs.tsv text.txt", "--data: expected one name of examples, got pairs.tsv text.txt"),
    ("--data pairs.tsv --vocab-size 300", "--vocab-size: expected --tokenizer bpe"),
    ("--data translaton", "translaton: expected a file or folder, found nothing; did you mean "
        "translation?"),
    ("--data pairs.tsv --tokenizer bpe --vocab-size 256", "--vocab-size: expected a whole number "
        ">= 257"),
    ("--data pairs.tsv --tokenizer bep", "--tokenizer"),
    ("--data same.txt --tokenizer bpe --block-size 64", "--block-size"),
]  # fmt: skip


ASKED_BADLY = [
    (["--prompt", " "], "--prompt: expected a question, got none"),
    (["--prompt", "yes 1", "--stop", "x"], "--stop: expected none, as an answer ends by itself"),
]


@pytest.mark.parametrize("words, expected", ASKED_BADLY)
def test_what_is_no_question_is_told_in_one_line(trained, monkeypatch, capsys, words, expected):
    monkeypatch.chdir(trained[0])
    error = mistake(sample.main, ["out/pairs-gpt", *words], capsys, trained[0])
    assert error.startswith("sample.py: ") and expected in error


def test_the_papers_models_answer_too(place, capsys):
    shape = "--steps 4 --eval-every 2 --n-layer 2 --n-head 2 --n-embd 16 --block-size 16".split()
    train.main(["--data", "pairs.tsv", "--model", "gpt3-125m", *shape])
    assert said(capsys, "out/pairs-gpt3-125m", "--prompt", "yes 1", "--tokens", 2).err == ""


def test_two_workers_learn_the_same_answers_as_one(place, capsys):
    losses = []
    for workers in "12":
        train.main(["--data", "pairs.tsv", *FEW, "--workers", workers, "--out", f"out/{workers}"])
        losses.append(re.findall(r"(?:loss|part:) ([\d.]+)", capsys.readouterr().out))
    assert losses[0] == losses[1] and len(losses[0]) == 4  # first, at 2 and 4 steps, at the end


@pytest.mark.parametrize("line, expected", BAD)
def test_a_mistake_is_told_in_one_line(place, capsys, line, expected):
    Path("bad.tsv").write_text("\n".join([*LINES[:2], "", "no tab here", *LINES]))
    Path("two.tsv").write_text("\n".join([LINES[0], "a\tb\tc", *LINES]))
    Path("few.tsv").write_text("\n".join(LINES[:9]))
    Path("latin.tsv").write_bytes(b"a\tb\ncaf\xe9\tcoffee\n")
    Path("empty.tsv").write_text(" \n")
    Path("same.txt").write_text("a" * 9000 + "".join(chr(97 + i * i % 26) for i in range(1000)))
    words = [*line.split(), "--steps", "2", "--n-layer", "1", "--n-embd", "16"]
    error = mistake(train.main, words, capsys, place)
    assert error.startswith("train.py: ") and expected in error


def test_answers_of_byte_pairs_are_whole_characters(place, capsys):
    Path("pairs.tsv").write_text("\n".join(LINES).replace("oui", "是的").replace("non!", "不是。"))
    words = "--tokenizer bpe --vocab-size 270 --steps 150 --n-embd 32 --n-layer 2 --n-head 2"
    train.main(["--data", "pairs.tsv", *words.split()])
    printed = said(capsys, "out/pairs-gpt", "--prompt", "no 5", "--tokens", 12)
    assert (printed.out, printed.err) == ("不是。\n", "")


def test_input_is_for_classifiers(trained, capsys):
    words = [str(trained[0] / "out/pairs-gpt"), "--input", "rows.csv"]
    assert "--input: expected a classifier" in mistake(sample.main, words, capsys, trained[0])


# byte pairs


def test_losses_of_byte_pairs_are_per_character(written):
    """Against -log p of every token of the last tenth but its first, counted here."""
    folder, printed = written
    model, application = sample.load(folder / "out/text-gpt", np)
    tokenizer = application.tokenizer
    cut = len(TEXT) * 9 // 10
    ids, nats = tokenizer.encode(TEXT[cut:]), []
    for i in range(0, len(ids) - 1, 16):
        z = model(ids[None, i : i + 16]).data[0].astype(float)
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        nats += [-np.log(row[t]) for row, t in zip(p, ids[i + 1 : i + 17], strict=False)]
    assert len(nats) == len(ids) - 1
    scale = len(ids) / (len(TEXT) - cut)
    found, bits = re.search(r"whole split: (\S+) nats per character = (\S+) bits", printed).groups()
    assert float(found) == pytest.approx(np.mean(nats) * scale, abs=2e-4)
    assert float(bits) == pytest.approx(np.mean(nats) * scale / np.log(2), abs=1e-3)
    first, uniform = map(float, re.search(r"first loss (\S+) \(uniform (\S+)\)", printed).groups())
    assert uniform == pytest.approx(np.log(tokenizer.vocab_size) * scale, abs=6e-4)
    assert first == pytest.approx(uniform, rel=0.05)
    shown = float(re.findall(r"step +4 .* validation (\d+\.\d+)", printed)[0])
    assert shown == pytest.approx(np.mean(nats) * scale, rel=0.05)  # of a sample of windows


def test_the_log_is_per_character_too(written):
    folder, printed = written
    shown = re.findall(r"step +4 .* loss (\d+\.\d+), validation (\d+\.\d+)", printed)[0]
    logged = (folder / "out/text-gpt/log.csv").read_text().splitlines()[-1].split(",")[1:3]
    np.testing.assert_allclose(np.array(logged, float), np.array(shown, float), atol=6e-4)


def test_a_model_of_byte_pairs_goes_on_from_any_prompt(written, capsys):
    run = written[0] / "out/text-gpt"
    printed = said(capsys, run, "--prompt", "明月 Zebra", "--tokens", 20)
    assert printed.out.startswith("明月 Zebra") and printed.err == ""


def test_tokens_of_byte_pairs_are_learned_from_the_training_part_alone(place, capsys):
    Path("text.txt").write_text(TEXT + "zzzzzzzz" * (len(TEXT) // 90))
    train.main([*BPE, "--vocab-size", "2000", *FEW])
    tokenizer = checkpoint.load("out/text-gpt/best.safetensors")[1]["tokenizer"]
    cut = (Path("text.txt").stat().st_size * 9) // 10
    assert Path("text.txt").read_text()[cut:].count("z") > 100
    assert not any("zz" in token for token in tokenizer["vocab"])


CJK = "".join(chr(0x4E00 + i * i % 6007) for i in range(15_000)) + "".join(
    chr(0x4E00 + i) for i in range(6000)
)


def test_a_text_of_many_characters_suggests_byte_pairs(place, capsys):
    Path("many.txt").write_text(CJK, encoding="utf-8")
    train.main(["--data", "many.txt", *FEW])
    assert "try --tokenizer bpe" in capsys.readouterr().out
    train.main(["--data", "text.txt", *FEW, "--block-size", "16"])
    assert "--tokenizer bpe" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["text.txt", "many.txt"])
def test_the_number_of_byte_pairs_is_said_however_long_they_are(place, capsys, name):
    Path("many.txt").write_text(CJK[:3000], encoding="utf-8")  # more tokens than characters
    train.main([*BPE, "--data", name, *FEW])
    printed = capsys.readouterr().out
    assert "300 tokens of bpe" in printed and "try --tokenizer" not in printed
