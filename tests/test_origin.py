"""train.py --init: a run begins with what another model has learned."""

import json
import re
import shutil
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from test_cli import mistake
from test_cli_classify import stop_and_resume

import sample
import train
from minigpt import __main__ as listing
from minigpt import hub
from minigpt.datasets import large, text
from minigpt.datasets.bpe import LETTERS, SpecialTokenizer
from minigpt.datasets.tokenizers import CharTokenizer
from minigpt.engine.autograd import no_grad
from minigpt.nn.gpt import GPT2, GPTConfig
from minigpt.origin import Origin
from minigpt.training import checkpoint
from minigpt.training.trainer import mean_loss

OLD = "the quick brown fox jumps over the lazy dog. " * 40
NEW = "a DOG and the fox. The DOG bites, the fox runs? " * 40
SHAPE = "--n-layer 1 --n-head 2 --n-embd 16 --block-size 16".split()
FEW = "--batch-size 4 --eval-every 2 --workers 1 --steps".split()
WORDS = {
    "gpt": ["--data", "old.txt"],
    "gpt2-mini": ["--data", "old.txt", "--model", "gpt2-mini"],
    "lstm": ["--data", "old.txt", "--model", "lstm"],
    "bpe": ["--data", "old.txt", "--tokenizer", "bpe", "--vocab-size", "270"],
    "answers": ["--data", "pairs.tsv"],
}


def furnish(folder):
    Path(folder, "old.txt").write_text(OLD)
    Path(folder, "new.txt").write_text(NEW)
    Path(folder, "pairs.tsv").write_text("".join(f"fox {i}\tdog {i}\n" for i in range(60)))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of a run of each kind of WORDS and of a GPT-2 in files; to be read only."""
    folder = tmp_path_factory.mktemp("origins")
    furnish(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(train, "CACHE", folder / "cache")
        for name, words in WORDS.items():
            train.main([*words, *SHAPE, *FEW, "12", "--out", name])
        rows = "".join(f"{i},{i % 2}\n" for i in range(60))
        Path("rows.csv").write_text("a,b\n" + rows)
        train.main("--data rows.csv --target b --steps 2 --workers 1 --out rows".split())
    hub.save(gpt2(), tokenizer(), folder / "files")
    return folder


def tokenizer():
    vocab = [*LETTERS, "th", "the", "<|endoftext|>"]
    return SpecialTokenizer(vocab, ["t h", "th e"], special={"<|endoftext|>": 258})


def gpt2():
    """A GPT-2 of another inner width and epsilon, and with more ids than its tokenizer."""
    shape = GPTConfig(264, 16, 1, 2, 16, n_inner=24, layer_norm_epsilon=1e-3)
    return GPT2(shape, np.random.default_rng(5))


@pytest.fixture
def place(tmp_path, tmp_path_factory, runs, monkeypatch):
    """A working folder with the texts in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "CACHE", tmp_path_factory.mktemp("cache"))
    furnish(tmp_path)
    return tmp_path


def first_loss(said):
    return re.search(r"first loss ([\d.]+)", said)[1]


@pytest.mark.parametrize("name", [*WORDS, "files"])
def test_a_run_begins_with_the_weights_shape_and_tokenizer_of_its_origin(
    place, runs, capsys, monkeypatch, name
):
    origin, begun = Origin(runs / name, place), {}

    def note(self, *_):
        begun.update({n: p.data.copy() for n, p in self.model.named_parameters().items()})
        raise KeyboardInterrupt

    monkeypatch.setattr(train.Trainer, "fit", note)
    with pytest.raises(KeyboardInterrupt):  # the text of OLD, so that no token is new
        train.main(["--data", "old.txt", "--init", str(runs / name), *FEW, "2"])
    assert begun.keys() == origin.arrays.keys()
    for parameter, a in origin.arrays.items():
        if name == "answers" and parameter == "embedding.weight":
            begun[parameter] = begun[parameter][: len(a)]  # the pairs have fewer letters
        assert np.array_equal(begun[parameter], a), parameter
    config = origin.options
    assert config["n_embd"] == 16 and config["n_layer"] == 1


def test_the_first_loss_of_the_same_text_is_what_the_origin_ended_with(place, runs, capsys):
    train.main(["--data", "old.txt", "--init", str(runs / "gpt"), *FEW, "2"])
    said = capsys.readouterr().out
    model, application = sample.load(runs / "gpt", np)
    held_out = application.tokenizer.encode(text.split(OLD, 16)[1])
    ended = mean_loss(model, *text.windows_in_order(held_out, 16), 4)
    assert float(first_loss(said)) == pytest.approx(ended, abs=6e-4)  # three digits are printed
    assert f"weights of {runs / 'gpt'}; first loss" in said
    assert "step     0    0 s  epoch 1  trained on other data" in said
    assert (place / "out/old-from-gpt/last.safetensors").exists()


def test_new_characters_come_behind_the_old_ones_and_are_said(place, runs, capsys):
    train.main(["--data", "new.txt", "--init", str(runs / "gpt"), *FEW, "2", "--out", "run"])
    assert f"6 characters are new to {runs / 'gpt'}: ',?DGOT'" in capsys.readouterr().out
    before, after = (
        checkpoint.read_about(run / "last.safetensors")["tokenizer"]["characters"]
        for run in (runs / "gpt", Path("run"))
    )
    assert after == before + ",?DGOT"


@pytest.mark.parametrize("name", ["gpt", "gpt2-mini", "lstm"])
def test_a_new_characters_first_logit_is_the_mean_of_all_others(place, runs, name):
    origin = Origin(runs / name, place)
    tokenizer, ids = origin.tokenizer.extended("!?"), origin.tokenizer.encode("the dog")[None]
    application = train.application_of("text", train.options.fitted("text", origin.options),
                                       None, origin)  # fmt: skip
    application.tokenizer = tokenizer
    model = application.build(np.random.default_rng(0)).eval()
    origin.fill(model)
    with no_grad():
        logits = model(ids).data
    V = origin.tokenizer.vocab_size
    assert logits.shape[-1] == V + 2
    mean = logits[..., :V].mean(-1, keepdims=True)
    np.testing.assert_allclose(logits[..., V:], np.repeat(mean, 2, -1), atol=1e-5)


def test_extending_keeps_ids_and_forgets_nothing():
    tokenizer = CharTokenizer.train("bca")
    longer = tokenizer.extended("zebra")
    assert longer.characters == "abcerz" and tokenizer.characters == "abc"
    assert longer.encode("cab").tolist() == tokenizer.encode("cab").tolist()
    assert longer.extended("crab") is longer


@pytest.mark.parametrize("name", ["gpt", "files", "bpe"])
def test_a_stopped_run_goes_on_without_its_origin_and_ends_as_the_undisturbed_one(
    place, runs, monkeypatch, capsys, name
):
    shutil.copytree(runs / name, "origin")
    real = train.application_of

    def once(kind, config, saved, origin):
        if saved:
            assert not Path("origin").exists()
        elif config.out == "my run":
            shutil.rmtree("origin")
        return real(kind, config, saved, origin)

    monkeypatch.setattr(train, "application_of", once)
    words = "--data new.txt --init origin --batch-size 4 --workers 1 --steps 7 --eval-every 2"
    stop_and_resume(words.split(), monkeypatch, capsys)


def test_the_curve_of_a_run_that_goes_on_begins_where_the_run_began(place, runs, capsys):
    words = ["--data", "new.txt", "--init", str(runs / "gpt"), *FEW, "2", "--out", "run"]
    train.main(words)
    began = first_loss(capsys.readouterr().out)
    train.main("--resume --out run --steps 4".split())
    said = capsys.readouterr().out
    assert first_loss(said) == began and f"weights of {runs / 'gpt'};" in said


def test_a_run_may_replace_its_own_origin(place, runs):
    shutil.copytree(runs / "gpt", "run")
    before = Origin("run", place)
    train.main(["--data", "new.txt", "--init", "run", "--out", "run", "--overwrite", *FEW, "2"])
    about = checkpoint.read_about("run/last.safetensors")
    assert about["origin"]["sha256"] == before.hash() and about["state"]["step"] == 2


def test_two_workers_begin_with_the_same(place, runs, capsys):
    losses = []
    for workers in "1", "2":
        words = ["--data", "new.txt", "--init", str(runs / "gpt"), *FEW, "4"]
        train.main([*words, "--workers", workers, "--out", workers])
        about = checkpoint.read_about(f"{workers}/last.safetensors")
        losses.append([float(x) for row in about["state"]["rows"] for x in row.split(",")])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)  # float32, another order of sums


def test_what_files_say_beyond_the_options_is_kept(place, runs, capsys):
    train.main(["--data", "new.txt", "--init", str(runs / "files"), *FEW, "2", "--out", "run"])
    model, application = sample.load("run", np)
    assert (model.config.vocab_size, model.config.n_inner) == (259, 24)  # a row for each token
    assert model.config.layer_norm_epsilon == 1e-3
    assert application.tokenizer.encode("the<|endoftext|>").tolist() == [257, 258]
    capsys.readouterr()
    sample.main(["run", "--prompt", "the", "--tokens", "5"])
    assert capsys.readouterr().out.startswith("the")
    hub.main(["run", "back"])  # and out again
    again, tokenizer = hub.load("back")
    for name, p in again.named_parameters().items():
        assert np.array_equal(p.data, model.state_dict()[name])
    assert tokenizer.special == {"<|endoftext|>": 258}


def test_a_model_of_texts_learns_to_answer_and_one_that_answers_to_write(place, runs, capsys):
    train.main(["--data", "pairs.tsv", "--init", str(runs / "gpt"), *FEW, "4", "--out", "asks"])
    said = capsys.readouterr().out
    assert "characters are new to" in said and "held out: " in said
    sample.main(["asks", "--prompt", "fox 3"])
    train.main(["--data", "old.txt", "--init", str(runs / "answers"), *FEW, "2", "--out", "writes"])
    assert "nats per character" in capsys.readouterr().out


def test_the_checkpoint_knows_its_origin_by_its_hash(place, runs, capsys):
    for name in "gpt", "lstm":
        train.main(["--data", "new.txt", "--init", str(runs / name), *FEW, "2"])
    arrays, about = checkpoint.load(runs / "gpt" / "best.safetensors", moments=False)
    expected = sha256(json.dumps(about["tokenizer"], sort_keys=True).encode())
    for name in sorted(arrays):
        expected.update(f"{name} float32 {arrays[name].shape}".encode() + arrays[name].tobytes())
    found = [
        checkpoint.read_about(f"out/new-from-{name}/last.safetensors") for name in ("gpt", "lstm")
    ]
    assert found[0]["origin"]["sha256"] == expected.hexdigest()
    assert found[0]["run"] != found[1]["run"]
    capsys.readouterr()
    listing.main([])
    begun = f"(begun with {runs / 'gpt'}, {expected.hexdigest()[:8]})"
    assert f"gpt on new.txt {begun}: step 2 of 2" in capsys.readouterr().out


def test_the_gradients_of_a_model_to_begin_with_are_checked(place, runs, capsys):
    train.main(["--data", "new.txt", "--init", str(runs / "gpt2-mini"), "--check-gradients"])
    assert "weights of" in capsys.readouterr().out and not (place / "out").exists()


@pytest.mark.parametrize(
    "name, remedy",
    [("gpt2-mini", "shorten the examples, or --init another model"), ("gpt", "raise it")],
)
def test_answers_longer_than_the_context_of_an_origin_are_refused_with_what_helps(
    place, runs, capsys, name, remedy
):
    (place / "long.tsv").write_text("".join(f"what {i}\t{'fox ' * 9}{i}\n" for i in range(60)))
    words = ["--data", "long.tsv", "--init", str(runs / name), *FEW, "2"]
    assert f"the longest example, got 16; {remedy}" in mistake(train.main, words, capsys, place)
    if remedy == "raise it":
        train.main([*words, "--block-size", "64"])


def test_a_vocabulary_with_two_line_ends_in_a_token_reads_answers_alike(place):
    from minigpt.datasets import tasks

    vocab = [*LETTERS, LETTERS[10] * 2, LETTERS[9] + LETTERS[32], LETTERS[10] + LETTERS[32]]
    merges = [f"{LETTERS[10]} {LETTERS[i]}" for i in (10, 32)] + [f"{LETTERS[9]} {LETTERS[32]}"]
    tokenizer = SpecialTokenizer(vocab, merges)
    examples = [[("one two", "a b", "x")], [("three", "c", "x")]]
    _, y = tasks.encode(examples, tokenizer)
    for targets, answer in zip(y, (" a b\n", " c\n"), strict=True):
        assert tokenizer.decode(targets[targets != tasks.IGNORED]) == answer


def test_another_origin_at_the_same_path_makes_another_run(place, runs):
    for number, name in enumerate(["gpt", "bpe"]):
        shutil.rmtree("origin", ignore_errors=True)
        shutil.copytree(runs / name, "origin")
        train.main(["--data", "new.txt", "--init", "origin", *FEW, "2", "--out", str(number)])
    one, other = (checkpoint.read_about(f"{n}/last.safetensors")["run"] for n in (0, 1))
    assert one != other


def test_a_large_text_is_encoded_once_also_when_its_run_goes_on(place, runs, monkeypatch, capsys):
    for name, value in {"LARGE": 300, "PIECE": 64}.items():
        monkeypatch.setattr(large, name, value)
    said = []
    for words in (["--init", str(runs / "gpt")], ["--resume"]):
        train.main(["--data", "new.txt", *words, *FEW, "4" if said else "2", "--out", "run"])
        said.append(capsys.readouterr().out)
    assert "it is turned into ids once" in said[0] and "6 characters are new" in said[0]
    assert "it is turned into ids once" not in said[1] and "continues after step 2" in said[1]


WRONG = {
    "another model": ("gpt", "--model lstm", "--model: expected gpt, as --init gpt has, got lstm"),
    "other layers": ("gpt", "--n-layer 2", "--n-layer: expected 1, as --init gpt has, got 2"),
    "other heads": ("gpt", "--n-head 4", "--n-head: expected 2, as --init gpt has, got 4"),
    "another width": ("gpt", "--n-embd 32", "--n-embd: expected 16, as --init gpt has, got 32"),
    "another tokenizer": ("gpt", "--tokenizer bpe", "--tokenizer: expected char, as --init gpt"),
    "a vocabulary": ("bpe", "--vocab-size 300", "--vocab-size: expected none beside --init"),
    "a longer context": ("gpt2-mini", "--block-size 32", "--block-size: expected at most 16, as"),
    "a classifier": ("rows", "", "--init: expected a model that writes, got rows, which class"),
    "nothing": (
        "no-run",
        "",
        "no-run: expected a checkpoint, found no file; name one of the runs there: answers, bpe, ",
    ),
    "a folder of runs": (
        ".",
        "",
        "last.safetensors: expected a checkpoint, found no file; name one",
    ),
    "images": ("gpt", "--data digits", "--init: expected text or a task, got images"),
    "a dry run": ("gpt", "--dry-run", "--init: expected none, as --dry-run reads nothing, got gpt"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_an_origin_is_refused_in_one_line(place, runs, monkeypatch, capsys, what):
    name, words, expected = WRONG[what]
    monkeypatch.chdir(runs)
    words = ["--data", "new.txt", "--init", name, *FEW, "2", *words.split()]
    assert expected in mistake(train.main, words, capsys, runs)


def test_a_context_may_be_longer_where_no_weight_depends_on_it(place, runs):
    words = ["--data", "new.txt", "--init", str(runs / "gpt"), *FEW, "2", "--out", "run"]
    train.main([*words, "--block-size", "24"])
    assert sample.load("run", np)[0].config.block_size == 24


def test_a_shorter_context_has_the_first_positions(place, runs):
    words = ["--data", "new.txt", "--init", str(runs / "gpt2-mini"), "--block-size", "8"]
    train.main([*words, "--learning-rate", "1e-9", *FEW, "2", "--out", "run"])
    ours, origin = (sample.load(run, np)[0].position for run in ("run", runs / "gpt2-mini"))
    assert ours.weight.shape == (8, 16)
    np.testing.assert_allclose(ours.weight.data, origin.weight.data[:8], atol=1e-6)


def test_resume_refuses_to_begin_with_something_else(place, runs, capsys):
    train.main(["--data", "new.txt", "--init", str(runs / "gpt"), *FEW, "2", "--out", "run"])
    words = ["--resume", "--out", "run", "--init", str(runs / "lstm")]
    assert "--init: this run has" in mistake(train.main, words, capsys, place)


def test_files_without_a_tokenizer_cannot_be_gone_on_from(place, capsys):
    hub.save(gpt2(), None, place / "bare")
    words = ["--data", "new.txt", "--init", "bare", *FEW, "2"]
    assert "expected tokenizer.json" in mistake(train.main, words, capsys, place)
