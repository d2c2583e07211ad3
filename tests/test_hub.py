"""Hugging Face's models: what transformers writes is read, and it opens what is written here."""

import json
import shutil
import string

import numpy as np
import pytest

import sample
import train
from minigpt import hub
from minigpt.datasets.tokenizers import CharTokenizer
from minigpt.engine.autograd import no_grad
from minigpt.engine.functional import cross_entropy
from minigpt.generate import generate
from minigpt.nn.gpt import GPT2, BandedGPT, GPTConfig
from minigpt.nn.module import Flat
from minigpt.training.optim import AdamW

SHAPES = [(50, 8, 1, 1, 8, None), (65, 16, 2, 2, 24, 40), (97, 12, 3, 4, 32, None)]
IDS = np.random.default_rng(0).integers(50, size=(3, 8))


@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip("torch")
    module = pytest.importorskip("transformers")
    module.logging.set_verbosity_error()
    return module


def ours(shape, dtype=np.float32):
    model = GPT2(GPTConfig(*shape), np.random.default_rng(1)).to(np, dtype).eval()
    for p in model.named_parameters().values():
        p.data += 0.1 * np.random.default_rng(p.size).standard_normal(p.shape).astype(dtype)
    return model


def theirs(transformers, shape, **options):
    V, T, n_layer, n_head, n_embd, n_inner = shape
    config = transformers.GPT2Config(
        vocab_size=V, n_positions=T, n_layer=n_layer, n_head=n_head, n_embd=n_embd,
        n_inner=n_inner, bos_token_id=None, eos_token_id=None, **options,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config).eval()


def logits_of(twin, ids, **inputs):
    import torch

    with torch.no_grad():
        return twin(torch.from_numpy(ids), **inputs).logits.numpy()


def logits(model, ids, mask=None):
    with no_grad():
        return model(ids, mask).data


@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 1e-4), (np.float64, 1e-9)])
@pytest.mark.parametrize("shape", SHAPES)
def test_transformers_opens_a_model_and_gives_its_logits(
    transformers, tmp_path, shape, dtype, tolerance
):
    model = ours(shape, dtype)
    hub.save(model, None, tmp_path / "there")
    twin = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "there").eval()
    assert str(twin.dtype) == f"torch.{np.dtype(dtype).name}"
    np.testing.assert_allclose(logits_of(twin, IDS), logits(model, IDS), rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-4), ("float64", 1e-9)])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_model_of_transformers_is_read_and_gives_its_logits(
    transformers, tmp_path, shape, dtype, tolerance
):
    import torch

    twin = theirs(transformers, shape, layer_norm_epsilon=1e-3).to(getattr(torch, dtype))
    twin.save_pretrained(tmp_path)
    model, tokenizer = hub.load(tmp_path)
    assert tokenizer is None and model.embedding.weight.data.dtype == dtype
    np.testing.assert_allclose(logits(model, IDS), logits_of(twin, IDS), rtol=0, atol=tolerance)


def test_padding_on_the_left_gives_the_same(transformers, tmp_path):
    import torch

    twin = theirs(transformers, SHAPES[1])
    twin.save_pretrained(tmp_path)
    mask = np.ones((3, 8), int)
    mask[1, :3] = mask[2, :7] = 0
    places = np.maximum(mask.cumsum(1) - 1, 0)
    inputs = {"attention_mask": torch.from_numpy(mask), "position_ids": torch.from_numpy(places)}
    expected = logits_of(twin, IDS, **inputs)
    got = logits(hub.load(tmp_path)[0], IDS, mask)
    np.testing.assert_allclose(got[mask > 0], expected[mask > 0], rtol=0, atol=1e-4)


def test_the_most_likely_tokens_are_the_same_both_ways(transformers, tmp_path):
    import torch

    twin = theirs(transformers, (60, 40, 2, 2, 32, None), initializer_range=0.3)
    twin.save_pretrained(tmp_path)
    model, _ = hub.load(tmp_path)
    hub.save(model, None, tmp_path / "out")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    got = generate(model, [IDS[0]], 20, np.random.default_rng(0), temperature=0)
    got = np.concatenate([*got]).tolist()
    for other in twin, again:
        written = other.generate(torch.from_numpy(IDS[:1]), max_new_tokens=20, do_sample=False)
        assert written[0, 8:].tolist() == got


def files(folder, arrays, **changes):
    """Write a folder with these weights, and a config.json with these changes."""
    from safetensors.numpy import save_file

    shape = {"model_type": "gpt2", "vocab_size": 50, "n_positions": 8, "n_layer": 1, "n_head": 1}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(shape | {"n_embd": 8} | changes))
    save_file(arrays, folder / "model.safetensors")
    return folder


def weights():
    model = ours(SHAPES[0])
    return model, {hub.hub_name(n): p.data for n, p in model.named_parameters().items()}


def test_names_without_prefix_and_stored_masks_are_understood(tmp_path):
    model, arrays = weights()
    arrays = {name.removeprefix("transformer."): a for name, a in arrays.items()}
    masks = {"h.0.attn.bias": np.ones((1, 1, 8, 8), bool), "h.0.attn.masked_bias": np.float32(-1e4)}
    masks["h.0.attn.masked_bias"] = np.array(-1e4, np.float32)
    head = {"lm_head.weight": arrays["wte.weight"].copy()}
    got, _ = hub.load(files(tmp_path / "there", arrays | masks | head))
    np.testing.assert_array_equal(logits(got, IDS), logits(model, IDS))


def test_a_table_that_is_named_only_as_the_head_is_found(tmp_path):
    model, arrays = weights()  # so safetensors' own save_model names it: the first of two names
    arrays["lm_head.weight"] = arrays.pop("transformer.wte.weight")
    got, _ = hub.load(files(tmp_path / "there", arrays))
    np.testing.assert_array_equal(logits(got, IDS), logits(model, IDS))


def test_the_shards_that_transformers_writes_are_read(transformers, tmp_path):
    twin = theirs(transformers, SHAPES[2])
    twin.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len([*tmp_path.glob("model-*.safetensors")]) > 1
    expected = logits_of(twin, IDS)
    np.testing.assert_allclose(logits(hub.load(tmp_path)[0], IDS), expected, rtol=0, atol=1e-4)


def test_of_one_file_and_shards_the_one_that_transformers_reads_is_read(transformers, tmp_path):
    for seed, size in ((1, "60KB"), (2, "1GB")):
        transformers.set_seed(seed)
        twin = theirs(transformers, SHAPES[2])
        twin.save_pretrained(tmp_path / size, max_shard_size=size)
    shutil.copy(tmp_path / "1GB" / "model.safetensors", tmp_path / "60KB")
    assert (tmp_path / "60KB" / "model.safetensors.index.json").exists()
    both = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "60KB").eval()
    expected, (model, _) = logits_of(both, IDS), hub.load(tmp_path / "60KB")
    np.testing.assert_allclose(logits(model, IDS), expected, rtol=0, atol=1e-4)


def test_shards_without_their_index_are_told_that_it_is_missing(tmp_path):
    folder = files(tmp_path / "there", weights()[1])
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    with pytest.raises(FileNotFoundError, match="model.safetensors.index.json: .*found none; copy"):
        hub.load(folder)


@pytest.mark.parametrize("placed", [None, [1], {"a": 1}, {"a": ["x"]}, {"a": "../x"}, {"a": ".."}])
def test_an_index_that_names_no_files_is_refused_in_one_line(tmp_path, placed):
    folder = files(tmp_path / "there", weights()[1])
    shutil.move(folder / "model.safetensors", tmp_path / "x")  # whole, but of another folder
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    with pytest.raises((ValueError, FileNotFoundError), match="expected the ") as caught:
        hub.load(folder)
    assert "\n" not in str(caught.value)


def test_a_weight_under_two_names_or_without_a_number_is_refused(tmp_path):
    arrays = weights()[1]
    twice = arrays | {"wte.weight": arrays["transformer.wte.weight"] + 1}
    with pytest.raises(ValueError, match="expected wte.weight once, got it twice"):
        hub.load(files(tmp_path / "twice", twice))
    none = arrays | {"transformer.ln_f.bias": np.full(8, np.nan, np.float32)}
    with pytest.raises(ValueError, match="ln_f.bias: expected finite numbers"):
        hub.load(files(tmp_path / "none", none))
    other = arrays | {"lm_head.weight": arrays["transformer.wte.weight"] + 1}
    with pytest.raises(ValueError, match="got one of its own"):
        hub.load(files(tmp_path / "other", other))


def test_shards_are_read_by_their_index(tmp_path):
    from safetensors.numpy import save_file

    model, arrays = weights()
    folder, names = files(tmp_path / "there", arrays), sorted(arrays)
    (folder / "model.safetensors").unlink()
    parts = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for file, part in parts.items():
        save_file({name: arrays[name] for name in part}, folder / file)
    placed = {name: file for file, part in parts.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    np.testing.assert_array_equal(logits(hub.load(folder)[0], IDS), logits(model, IDS))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_widened(transformers, tmp_path, dtype):
    import torch

    twin = theirs(transformers, SHAPES[1]).to(getattr(torch, dtype))
    twin.save_pretrained(tmp_path)
    model, _ = hub.load(tmp_path)
    for name, p in model.named_parameters().items():
        expected = twin.state_dict()[hub.hub_name(name)].float().numpy()
        np.testing.assert_array_equal(p.data, expected)


def test_twenty_steps_of_training_follow_pytorchs(transformers, tmp_path):
    import torch

    twin = theirs(transformers, SHAPES[1], resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    twin.save_pretrained(tmp_path)
    model, _ = hub.load(tmp_path)
    optimizer, losses, expected = AdamW(Flat(model), weight_decay=0.0), [], []
    other = torch.optim.AdamW(twin.parameters(), lr=1e-2, betas=(0.9, 0.99), weight_decay=0.0)
    for number in range(1, 21):
        ids = np.random.default_rng(number).integers(65, size=(4, 9))
        loss = cross_entropy(model(ids[:, :-1]), ids[:, 1:])
        loss.backward()
        optimizer.step(1e-2, number)
        losses.append(loss.item())
        x, y = (torch.from_numpy(part.copy()) for part in (ids[:, :-1], ids[:, 1:]))
        loss = torch.nn.functional.cross_entropy(twin(x).logits.flatten(0, 1), y.flatten())
        other.zero_grad()
        loss.backward()
        other.step()
        expected.append(loss.item())
    np.testing.assert_allclose(losses, expected, rtol=1e-4)  # float32, and 20 steps of AdamW


# commands


def test_a_run_goes_out_and_sample_writes_with_what_came_back(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("to be, or not to be, that is the question\n" * 40)
    shape = "--n-layer 1 --n-head 1 --n-embd 8 --block-size 8 --batch-size 2 --workers 1"
    train.main(f"--data text.txt --model gpt2-mini {shape} --steps 2 --out run".split())
    hub.main(["run", "there"])
    for words in (["--prompt", "to be", "--tokens", "30", "--count", "2"], ["--explain", "or not"]):
        written = []
        for run in ("run", "there"):
            capsys.readouterr()
            sample.main([run, *words])
            written.append(capsys.readouterr().out)
        assert written[0] == written[1] and len(written[0]) > 30
    sample.main(["there", "--look", "to be, or not to be"])  # longer than the context of 8
    assert (tmp_path / "there" / "look.html").exists()
    with pytest.raises(SystemExit):
        sample.main(["there", "--input", "rows.csv"])
    assert "expected a classifier, there writes" in capsys.readouterr().err


BAD = {
    "another type": ({"model_type": "llama"}, "expected model_type gpt2, got llama"),
    "its GELU by another name": (
        {"activation_function": "gelu_pytorch_tanh"},
        "expected activation_function gelu_new",
    ),
    "a width that no memory holds": ({"n_inner": 10**13}, "n_inner: expected at most 50"),
    "a width in letters": ({"n_inner": "32"}, "n_inner: expected a whole number, got 32"),
    "a truth value": ({"n_layer": True}, "n_layer: expected a whole number, got True"),
    "no epsilon": ({"layer_norm_epsilon": None}, "expected a number between 0 and 1, got None"),
    "another vocabulary": ({"vocab_size": 60}, r"wte.weight \(50, 8\) for \(60, 8\)"),
    "a layer that lacks": ({"n_layer": 2}, "12 missing: h.1.ln_1.weight, h.1.ln_1.bias"),
    "another GELU": ({"activation_function": "gelu"}, "expected activation_function gelu_new"),
    "a head of its own": (
        {"tie_word_embeddings": False},
        "expected tie_word_embeddings True, got False",
    ),
    "more layers": (
        {"n_layer": 10**9},
        "n_layer: expected at most 16, as its weights are, got 1000000000",
    ),
    "no heads": ({"n_head": None}, "n_head: expected a whole number, got None"),
    "heads that do not divide": ({"n_head": 3}, "n_embd: expected a multiple of n_head = 3"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_model_of_another_form_is_refused_by_name(tmp_path, what):
    changes, says = BAD[what]
    with pytest.raises(ValueError, match=says) as caught:
        hub.load(files(tmp_path / "there", weights()[1], **changes))
    assert "\n" not in str(caught.value)


def test_all_wrong_names_are_told_at_once(tmp_path):
    _, arrays = weights()
    arrays["transformer.h.0.strange"] = np.ones(2, np.float32)
    arrays["transformer.ln_f.bias"] = np.ones(3, np.float32)
    del arrays["transformer.ln_f.weight"]
    with pytest.raises(ValueError) as caught:
        hub.load(files(tmp_path / "there", arrays))
    for words in (
        "1 missing: ln_f.weight",
        "1 not expected: h.0.strange",
        "ln_f.bias (3,) for (8,)",
    ):
        assert words in str(caught.value)


def test_what_cannot_go_out_is_refused_and_nothing_is_written(tmp_path):
    banded = BandedGPT(GPTConfig(50, 8, 2, 1, 8), np.random.default_rng(0))
    with pytest.raises(ValueError, match="expected a model in GPT-2's form .* got BandedGPT"):
        hub.save(banded, None, tmp_path / "there")
    assert not (tmp_path / "there").exists()
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="expected a new or empty folder"):
        hub.save(ours(SHAPES[0]), None, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("characters", ["abc", "", string.printable], ids=["3", "0", "100"])
def test_characters_that_are_not_the_models_are_refused_on_the_way_out_as_on_the_way_in(
    tmp_path, characters
):
    with pytest.raises(ValueError, match=f"tokenizer: expected 50 tokens.*got {len(characters)}"):
        hub.save(ours(SHAPES[0]), CharTokenizer(characters), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    hub.save(ours(SHAPES[0]), CharTokenizer(string.printable[:50]), tmp_path / "out")
    assert hub.load(tmp_path / "out")[1].characters == string.printable[:50]
    about = hub._described(ours(SHAPES[0]), CharTokenizer(characters))["tokenizer.json"]
    (tmp_path / "out" / "tokenizer.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="tokenizer.json: expected "):
        hub.load(tmp_path / "out")


def test_weights_that_are_no_numbers_do_not_go_out(tmp_path):
    model = ours(SHAPES[0])
    model.norm.bias.data[0] = np.inf
    with pytest.raises(ValueError, match="ln_f.bias: expected finite numbers, got NaN or infinity"):
        hub.save(model, None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("made", [False, True])
def test_a_full_disk_leaves_the_folder_as_it_was(tmp_path, monkeypatch, made):
    def full(path, *parts):
        if path.name == "config.json":
            raise OSError(28, "No space left on device")
        write_whole(path, *parts)

    if made:
        (tmp_path / "there").mkdir()
    write_whole = hub.write_whole
    monkeypatch.setattr(hub, "write_whole", full)
    with pytest.raises(OSError, match="No space left"):
        hub.save(ours(SHAPES[0]), CharTokenizer(string.printable[:50]), tmp_path / "there")
    assert [*tmp_path.rglob("*")] == [tmp_path / "there"] * made


def test_what_is_missing_is_told_in_one_line(tmp_path, capsys):
    folder = files(tmp_path / "there", weights()[1])
    with pytest.raises(SystemExit):
        sample.main([str(folder), "--prompt", "a"])
    assert "expected tokenizer.json, or vocab.json and merges.txt" in capsys.readouterr().err
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="damaged"):
        hub.load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="save_pretrained writes them"):
        hub.load(folder)
    (folder / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="expected model_type gpt2, got None"):
        hub.load(folder)
    shutil.rmtree(folder)
    for words, says in (
        ([], "arguments are required: RUN, FOLDER"),
        ([str(folder), "there"], "expected a checkpoint, found no file"),
    ):
        with pytest.raises(SystemExit, match="2"):
            hub.main(words)
        line = capsys.readouterr().err
        assert says in line and line.count("\n") == 1
