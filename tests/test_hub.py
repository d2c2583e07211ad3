"""Hugging Face's folders: what transformers writes is read, and it opens what is written here."""

import json
import shutil

import numpy as np
import pytest

import sample
import train
from minigpt import hub
from minigpt.datasets.bpe import BPETokenizer
from minigpt.datasets.tokenizers import CharTokenizer
from minigpt.engine.autograd import no_grad
from minigpt.engine.functional import cross_entropy
from minigpt.generate import generate
from minigpt.nn.gpt import GPT2, BandedGPT, GPTConfig
from minigpt.nn.module import Flat
from minigpt.training.optim import AdamW

TEXT = "The cat sat on the mat; the dog did not. ¡Señor! 漢字 and 1,024 numbers\n\tagain.  "
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


def test_the_most_likely_tokens_are_the_same(transformers, tmp_path):
    import torch

    twin = theirs(transformers, (60, 40, 2, 2, 32, None), initializer_range=0.3)
    twin.save_pretrained(tmp_path)
    start = torch.from_numpy(IDS[:1])
    expected = twin.generate(start, max_new_tokens=20, do_sample=False)[0, 8:].numpy()
    model, _ = hub.load(tmp_path)
    got = generate(model, [IDS[0]], 20, np.random.default_rng(0), temperature=0)
    assert np.concatenate([*got]).tolist() == expected.tolist()


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


# tokenizers


@pytest.mark.parametrize("kind", [CharTokenizer.train, lambda text: BPETokenizer.train(text, 300)])
def test_transformers_gives_a_text_the_same_ids(transformers, tmp_path, kind):
    tokenizer = kind(TEXT * 3)
    model = ours((tokenizer.vocab_size, 64, 1, 1, 8, None))
    hub.save(model, tokenizer, tmp_path / "there")
    twin = transformers.AutoTokenizer.from_pretrained(tmp_path / "there")
    expected = tokenizer.encode(TEXT).tolist()
    assert twin(TEXT)["input_ids"] == expected
    assert twin.decode(expected) == TEXT
    _, again = hub.load(tmp_path / "there")
    assert again.encode(TEXT).tolist() == expected and again.decode(expected) == TEXT


@pytest.mark.parametrize("old", [False, True])
def test_a_special_token_is_encoded_as_itself(transformers, tmp_path, old):
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.ByteLevelBPETokenizer()
    made.train_from_iterator([TEXT] * 3, 300, special_tokens=["<|endoftext|>"], show_progress=False)
    if old:
        made.save_model(str(tmp_path))  # vocab.json and merges.txt
    else:
        made.save(str(tmp_path / "tokenizer.json"))
    text = f"<|endoftext|>{TEXT}<|endoftext|>{TEXT}"
    tokenizer = hub._tokenizer(tmp_path)
    assert tokenizer.encode(text).tolist() == made.encode(text).ids
    assert tokenizer.decode(tokenizer.encode(text)) == text


# commands


def test_a_run_goes_out_and_sample_writes_with_what_came_back(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("to be, or not to be, that is the question\n" * 40)
    shape = "--n-layer 1 --n-head 1 --n-embd 8 --block-size 8 --batch-size 2 --workers 1"
    train.main(f"--data text.txt --model gpt2-mini {shape} --steps 2 --out run".split())
    hub.main(["run", "there"])
    written = []
    for run in ("run", "there"):
        capsys.readouterr()
        sample.main([run, "--prompt", "to be", "--tokens", "30"])
        written.append(capsys.readouterr().out)
    assert written[0] == written[1] and len(written[0]) > 30


BAD = {
    "another type": ({"model_type": "llama"}, "expected a model of type gpt2, got llama"),
    "another GELU": ({"activation_function": "gelu"}, "expected activation_function gelu_new"),
    "a head of its own": (
        {"tie_word_embeddings": False},
        "expected tie_word_embeddings: True, got False",
    ),
    "more layers": ({"n_layer": 10**9}, "n_layer: expected 1, as its weights are, got 1000000000"),
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


def test_what_is_missing_is_told_in_one_line(tmp_path, capsys):
    folder = files(tmp_path / "there", weights()[1])
    with pytest.raises(SystemExit):
        sample.main([str(folder), "--prompt", "a"])
    assert "expected tokenizer.json, or vocab.json and merges.txt" in capsys.readouterr().err
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="damaged"):
        hub.load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="safe_serialization=True"):
        hub.load(folder)
    shutil.rmtree(folder)
    with pytest.raises(SystemExit, match="python -m minigpt.hub RUN FOLDER"):
        hub.main([])
    with pytest.raises(SystemExit, match="expected a checkpoint, found no file"):
        hub.main([str(folder), "there"])
