"""Hugging Face's folders, in and out: models of GPT-2's form, and their tokenizers.

python -m minigpt.hub RUN FOLDER     a run of train.py becomes a folder that transformers opens

A folder has config.json (the shape), model.safetensors or several such files with an index (the
weights) and tokenizer.json (or vocab.json and merges.txt). Its weights are stored as here, (in,
out), under other names.
"""

import json
import re
import sys
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from minigpt.applications import runs
from minigpt.applications.plan import Unwritten
from minigpt.applications.writing import Writing
from minigpt.datasets.bpe import BPETokenizer
from minigpt.datasets.tokenizers import CharTokenizer
from minigpt.engine.arrays import to_numpy
from minigpt.files import write_whole
from minigpt.messages import check
from minigpt.nn.gpt import GPT2, GPTConfig
from minigpt.training.checkpoint import safetensors
from minigpt.training.config import Config

# The words of our parameters' names, and what transformers calls them.
WORDS = {
    "embedding": "wte", "position": "wpe", "blocks": "h", "norm": "ln_f", "norm1": "ln_1",
    "mixer": "attn", "qkv": "c_attn", "out": "c_proj", "norm2": "ln_2", "up": "c_fc",
    "down": "c_proj",
}  # fmt: skip
STORED = re.compile(r"h[.][0-9]+[.]attn[.](bias|masked_bias)")  # masks, which are no weights
GELU = "gelu_new", "gelu_pytorch_tanh"  # names of the GELU with tanh
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # bfloat16: its upper 16 bits
OTHER = {"scale_attn_by_inverse_layer_idx": False, "scale_attn_weights": True,
         "add_cross_attention": False, "tie_word_embeddings": True}  # fmt: skip


def hub_name(name):
    """transformers' name: blocks.0.mixer.out.bias -> transformer.h.0.attn.c_proj.bias"""
    return ".".join(["transformer", *(WORDS.get(word, word) for word in name.split("."))])


# ---- out ---------------------------------------------------------------------------------------


def save(model, tokenizer, folder):
    """Write the files that transformers' AutoModelForCausalLM and AutoTokenizer open.

    tokenizer: of characters or BPE, or None. Raises ValueError for a model of another form than
    GPT-2's, whose formulas transformers' GPT-2 does not have, and for a folder that is not empty.
    """
    form = "a model in GPT-2's form (train.py --model gpt2-mini)"
    check(type(model) is GPT2, "hub", form, type(model).__name__, "only that form has its place")
    folder = Path(folder)
    empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    check(empty, folder, "a new or empty folder", "one with other files", "name another")
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {hub_name(n): to_numpy(p.data) for n, p in model.named_parameters().items()}
    arrays = {name: np.ascontiguousarray(a) for name, a in sorted(arrays.items())}
    write_whole(folder / "model.safetensors", *safetensors(arrays, {"format": "pt"}))
    texts = {"config.json": _shape_of(model)}
    if tokenizer is not None:
        texts["tokenizer.json"] = _described(tokenizer)
        size = model.config.block_size
        kind = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": size}
        texts["tokenizer_config.json"] = kind | {"clean_up_tokenization_spaces": False}
    for name, value in texts.items():
        write_whole(folder / name, json.dumps(value, indent=1).encode())


def _shape_of(model):
    """What config.json says of a model."""
    c = model.config
    dtype = model.embedding.weight.data.dtype.name
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), c.dropout)
    return rates | OTHER | {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "dtype": dtype,
        "vocab_size": c.vocab_size, "n_positions": c.block_size, "n_embd": c.n_embd,
        "n_layer": c.n_layer, "n_head": c.n_head, "n_inner": c.n_inner,
        "layer_norm_epsilon": c.layer_norm_epsilon, "activation_function": GELU[0],
        "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip


def _described(tokenizer):
    """What tokenizer.json says of a tokenizer. Of characters it is a BPE without merges, which sees
    a whole text as one word."""
    if isinstance(tokenizer, CharTokenizer):
        vocab, merges, bytes_of, joined = tokenizer.characters, [], None, {"type": "Fuse"}
    else:
        vocab, merges = tokenizer.vocab, tokenizer.merges
        bytes_of = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                    "use_regex": True}  # fmt: skip
        joined = bytes_of
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
             "ignore_merges": False, "vocab": {token: i for i, token in enumerate(vocab)},
             "merges": merges}  # fmt: skip
    special = [
        {"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for i, token in enumerate(vocab) if token in getattr(tokenizer, "special", ())
    ]  # fmt: skip
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": special,
            "normalizer": None, "pre_tokenizer": bytes_of, "post_processor": None,
            "decoder": joined, "model": model}  # fmt: skip


# ---- in ----------------------------------------------------------------------------------------


def load(folder):
    """A folder of Hugging Face's -> GPT2 in float32 (or float64), tokenizer or None

    Raises FileNotFoundError if a file is missing, ValueError if the model is not in GPT-2's form or
    if the weights are not those that config.json describes; one message names all of them.
    """
    folder = Path(folder)
    shape, arrays = _read_json(folder / "config.json"), _weights(folder)
    kind, bend = shape.get("model_type"), shape.get("activation_function", GELU[0])
    check(kind == "gpt2", folder, "a model of type gpt2", kind, "no other form is known here")
    check(bend in GELU, folder, f"activation_function {GELU[0]}", bend, "take another model")
    for name, value in OTHER.items():
        got = shape.get(name, value)
        check(got == value, folder, f"{name}: {value}", got, "take another model")
    model = GPT2(_config(folder, shape, arrays), Unwritten())
    width = np.float64 if arrays["wte.weight"].dtype == np.float64 else np.float32
    model = model.to(np, width).eval()
    expected = {hub_name(n)[len("transformer.") :]: p for n, p in model.named_parameters().items()}
    _same_names(folder, expected, arrays)
    for name, p in expected.items():
        p.data[...] = arrays[name]
    return model, _tokenizer(folder)


def _config(folder, shape, arrays):
    """The shape, compared with the weights before anything of that size is built."""
    (vocab, width), length = arrays["wte.weight"].shape, len(arrays["wpe.weight"])
    blocks = len({name.split(".")[1] for name in arrays if name.startswith("h.")})
    held = {"vocab_size": vocab, "n_embd": width, "n_positions": length, "n_layer": blocks}
    for name, value in held.items():
        said = shape.get(name)
        check(said == value, f"{folder}: {name}", f"{value}, as its weights are", said, "mend it")
    inner, epsilon = shape.get("n_inner"), shape.get("layer_norm_epsilon", 1e-5)
    heads = shape.get("n_head")
    check(isinstance(heads, int), f"{folder}: n_head", "a whole number", heads, "mend it")
    return GPTConfig(vocab, length, blocks, heads, width, inner, layer_norm_epsilon=epsilon)


def _weights(folder):
    """{name without prefix: array} of all files; stored masks and the tied head are left out."""
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file():
        names = sorted(set(_read_json(index)["weight_map"].values()))
    arrays = {}
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            need = "expected the weights as .safetensors, found no file"
            remedy = "save the model with safe_serialization=True"
            raise FileNotFoundError(f"{folder / name}: {need}; {remedy}")
        for key, a in _arrays(folder / name):
            arrays[key.removeprefix("transformer.")] = a
    arrays = {name: a for name, a in arrays.items() if not STORED.fullmatch(name)}
    for name in "wte.weight", "wpe.weight":
        found = getattr(arrays.get(name), "ndim", 0) == 2
        check(found, f"{folder}: {name}", "a matrix", "none", "it is no GPT-2")
    head = arrays.pop("lm_head.weight", arrays["wte.weight"])
    tied, need = np.array_equal(head, arrays["wte.weight"]), "a head that is the embedding's table"
    check(tied, folder, need, "one of its own", "take another model")
    return arrays


def _arrays(file):
    """Yield (name, array) of a .safetensors file. bfloat16, which NumPy lacks, is the upper half of
    a float32."""
    try:
        safe_open(file, "numpy")  # says if the header and the file do not fit together
    except SafetensorError as error:
        raise ValueError(f"{file}: damaged ({str(error).splitlines()[0]}); copy it again") from None
    data = np.memmap(file, np.uint8, "r")
    begin = 8 + int.from_bytes(data[:8].tobytes(), "little")
    header = json.loads(data[8:begin].tobytes())
    header.pop("__metadata__", None)
    for name, about in header.items():
        dtype, (start, end) = about["dtype"], about["data_offsets"]
        known = dtype in DTYPES
        if not known and STORED.fullmatch(name.removeprefix("transformer.")):
            continue  # a mask of truth values
        check(known, f"{file}: {name}", f"one of {', '.join(DTYPES)}", dtype, "convert it")
        a = data[begin + start : begin + end].view(DTYPES[dtype]).reshape(about["shape"])
        yield name, (a.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else a


def _same_names(folder, expected, arrays):
    """Raise ValueError unless the file has these names and shapes: one line for all differences."""
    missing = [name for name in expected if name not in arrays]
    extra = [name for name in arrays if name not in expected]
    shapes = [
        f"{name} {arrays[name].shape} for {p.shape}"
        for name, p in expected.items()
        if name in arrays and arrays[name].shape != p.shape
    ]
    found = {"missing": missing, "not expected": extra, "of another shape": shapes}
    wrong = [
        f"{len(names)} {what}: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
        for what, names in found.items()
        if names
    ]
    need = "the weights of config.json's shape"
    check(not wrong, folder, need, "; ".join(wrong), "copy it again")


class SpecialTokenizer(BPETokenizer):
    """BPE in which a special token, such as <|endoftext|>, is encoded as itself."""

    special = ()

    def encode(self, text):
        if not any(token in text for token in self.special):
            return super().encode(text)
        pattern = "|".join(map(re.escape, self.special))
        ids = []
        for part in re.split(f"({pattern})", text):
            if part in self.special:
                ids.append([self.vocab.index(part)])
            else:
                ids.append(super().encode(part))
        return np.concatenate(ids).astype(np.int32)


def _tokenizer(folder):
    """The tokenizer of tokenizer.json, or of vocab.json and merges.txt; None if there is none."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        if not (folder / "vocab.json").is_file():
            return None
        tokenizer = SpecialTokenizer.read(folder / "vocab.json", folder / "merges.txt")
        tokenizer.special = tuple(t for t in tokenizer.vocab if re.fullmatch(r"<\|.*\|>", t))
        return tokenizer
    about = _read_json(file)
    try:
        kind, vocab, merges = (about["model"][name] for name in ("type", "vocab", "merges"))
        vocab = dict(vocab) | {t["content"]: t["id"] for t in about.get("added_tokens") or []}
        special = [t["content"] for t in about.get("added_tokens") or [] if t.get("special")]
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
        tokens = sorted(vocab, key=vocab.get)
        before = (about.get("pre_tokenizer") or {}).get("type")
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ValueError(f"{file}: expected a tokenizer of type BPE; copy it again") from None
    in_order = [vocab[t] for t in tokens] == [*range(len(tokens))]
    need, none = "BPE with an id for each token from 0 on", "no other kind is known here"
    check(kind == "BPE" and in_order, file, need, kind, none)
    if before is None and not merges and all(len(t) == 1 for t in tokens):
        return CharTokenizer("".join(tokens))
    check(before == "ByteLevel", file, "a pre_tokenizer ByteLevel", before, none)
    tokenizer = SpecialTokenizer(tokens, merges, file)
    tokenizer.special = tuple(special)
    return tokenizer


def _read_json(file):
    """The object in a JSON file."""
    if not file.is_file():
        raise FileNotFoundError(f"{file}: expected a file, found none; copy the whole folder")
    try:
        value = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        value = None
    check(isinstance(value, dict), file, "a JSON object", "something else", "copy it again")
    return value


def writer(path, library, folder):
    """The model of a folder of Hugging Face's, and an application that writes with it."""
    model, tokenizer = load(path)
    need = "tokenizer.json, or vocab.json and merges.txt"
    check(tokenizer is not None, path, need, "neither", "copy them, too")
    application = Writing(Config(model="gpt2", out=str(path)), folder)
    application.tokenizer = tokenizer
    return model.to(library, model.embedding.weight.data.dtype), application


def main(words=None):
    """python -m minigpt.hub RUN FOLDER"""
    words = sys.argv[1:] if words is None else words
    if len(words) != 2 or words[0].startswith("-"):
        sys.exit(__doc__.split("\n\n")[1])
    try:
        model, application = runs.load(words[0], np, Path("data"))
        save(model, getattr(application, "tokenizer", None), words[1])
    except (ValueError, OSError) as error:
        sys.exit(f"minigpt.hub: {error}")
    print(f"{words[1]}: AutoModelForCausalLM.from_pretrained opens it, and sample.py {words[1]}")


if __name__ == "__main__":
    main()
