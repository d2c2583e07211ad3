"""Hugging Face's folders, in and out: models of GPT-2's form, and their tokenizers.

python -m minigpt.hub RUN FOLDER     a run of train.py becomes a folder that transformers opens

A folder has config.json (the shape), model.safetensors or several such files with an index (the
weights) and tokenizer.json (or vocab.json and merges.txt). Its weights are stored as here, (in,
out), under other names.
"""

import argparse
import json
import re
import sys
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from minigpt.applications import runs
from minigpt.applications.plan import Unwritten
from minigpt.applications.writing import Writing
from minigpt.datasets.bpe import BPETokenizer, SpecialTokenizer
from minigpt.datasets.tokenizers import CharTokenizer
from minigpt.engine.arrays import to_numpy
from minigpt.files import write_whole
from minigpt.messages import check, quoted, replace_unknown
from minigpt.nn.gpt import GPT2, GPTConfig
from minigpt.training.checkpoint import safetensors
from minigpt.training.config import Config, Parser

# The words of our parameters' names, and what transformers calls them.
WORDS = {
    "embedding": "wte", "position": "wpe", "blocks": "h", "norm": "ln_f", "norm1": "ln_1",
    "mixer": "attn", "qkv": "c_attn", "out": "c_proj", "norm2": "ln_2", "up": "c_fc",
    "down": "c_proj",
}  # fmt: skip
PREFIX = "transformer."
STORED = re.compile(r"h[.][0-9]+[.]attn[.](bias|masked_bias)")  # masks, which are no weights
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # bfloat16: its upper 16 bits
SIZES = "vocab_size", "n_positions", "n_layer", "n_head", "n_embd", "n_inner"  # as GPTConfig's
# What the formulas of GPT-2's form take for granted: gelu_new is the GELU with tanh.
FORM = {"model_type": "gpt2", "activation_function": "gelu_new", "tie_word_embeddings": True,
        "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False}  # fmt: skip
# How GPT-2's tokenizer cuts a text into words, and where an added token is looked for.
CUT = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
ANYWHERE = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
END = "<|endoftext|>"  # what stands between the texts that GPT-2 learned from


def hub_name(name):
    """transformers' name: blocks.0.mixer.out.bias -> transformer.h.0.attn.c_proj.bias"""
    return ".".join(["transformer", *(WORDS.get(word, word) for word in name.split("."))])


# ---- out ---------------------------------------------------------------------------------------


def save(model, tokenizer, folder):
    """Write the files that transformers' AutoModelForCausalLM and AutoTokenizer open.

    tokenizer: of characters or BPE, or None. If it fails, the folder is left as it was. Raises
    ValueError for a model of another form than GPT-2's, whose formulas transformers' GPT-2 does not
    have, for weights or a tokenizer that load would refuse, and for a folder that is not empty.
    """
    form = "a model in GPT-2's form (train.py --model gpt2-mini)"
    no_place = "what other forms compute, transformers' GPT-2 does not"
    check(type(model) is GPT2, "model", form, type(model).__name__, no_place)
    folder, made = Path(folder), not Path(folder).exists()
    empty = made or (folder.is_dir() and not any(folder.iterdir()))
    check(empty, folder, "a new or empty folder", "one with other files", "name another")
    arrays = {hub_name(n): to_numpy(p.data) for n, p in model.named_parameters().items()}
    for name, a in arrays.items():
        _refuse_infinite(name, a)
    files = {"model.safetensors": safetensors(arrays, {"format": "pt"})}
    if tokenizer is not None:
        _refuse_other("tokenizer", tokenizer, model.config.vocab_size)
        files |= {name: [_json(value)] for name, value in _described(model, tokenizer).items()}
    files["config.json"] = [_json(_form_of(model, tokenizer))]  # last: without it nothing is opened
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for name, parts in files.items():
            write_whole(folder / name, *parts)
    except BaseException:  # a full disk, Ctrl-C
        for name in files:
            (folder / name).unlink(missing_ok=True)
        if made:
            folder.rmdir()
        raise


def _json(value):
    return json.dumps(value, indent=1).encode()


def _form_of(model, tokenizer):
    """What config.json says of a model."""
    c, end = model.config, getattr(tokenizer, "special", {}).get(END)
    sizes = c.vocab_size, c.block_size, c.n_layer, c.n_head, c.n_embd, c.n_inner
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), c.dropout)
    return FORM | dict(zip(SIZES, sizes, strict=True)) | rates | {
        "architectures": ["GPT2LMHeadModel"], "dtype": model.embedding.weight.data.dtype.name,
        "layer_norm_epsilon": c.layer_norm_epsilon, "bos_token_id": end, "eos_token_id": end,
    }  # fmt: skip


def _described(model, tokenizer):
    """{file: what it says of a tokenizer}. Of characters it is a BPE without merges, which sees a
    whole text as one word."""
    if isinstance(tokenizer, CharTokenizer):
        vocab, merges, cut, join = tokenizer.characters, [], None, {"type": "Fuse"}
    else:
        vocab, merges, cut = tokenizer.vocab, tokenizer.merges, dict(CUT)
        join = cut
    special = getattr(tokenizer, "special", {})
    added = [
        {"id": i, "content": token, "special": True} | ANYWHERE for token, i in special.items()
    ]
    form = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": False, "vocab": {token: i for i, token in enumerate(vocab)},
            "merges": merges}  # fmt: skip
    about = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
             "normalizer": None, "pre_tokenizer": cut, "post_processor": None, "decoder": join,
             "model": form}  # fmt: skip
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    kind["model_max_length"] = model.block_size
    if END in special:
        kind |= {"bos_token": END, "eos_token": END}
    return {"tokenizer.json": about, "tokenizer_config.json": kind}


# ---- in: the model -----------------------------------------------------------------------------


def load(folder):
    """A folder of Hugging Face's -> GPT2 in float32 (or float64), tokenizer or None

    Dropout is off. Raises FileNotFoundError if a file is missing, ValueError if the model is not in
    GPT-2's form, or if the weights are not those that config.json describes: one message names all.
    """
    folder = Path(folder)
    shape, arrays = _shape(folder / "config.json"), _weights(folder)
    _refuse_larger(folder, shape, arrays)
    head = arrays.pop("lm_head.weight", None)
    if head is not None:  # of two names for one table, some files keep only this one
        arrays.setdefault("wte.weight", head)
    model = GPT2(shape, Unwritten())
    expected = {hub_name(n).removeprefix(PREFIX): p for n, p in model.named_parameters().items()}
    _same_names(folder, expected, arrays)
    table = arrays["wte.weight"]
    tied, need = head is None or np.array_equal(head, table), "a head that is the embedding's table"
    check(tied, folder, need, "one of its own", "take another model")
    model.to(np, np.float64 if table.dtype == np.float64 else np.float32)  # room for the numbers
    for name, p in expected.items():
        p.data[...] = arrays[name]
        _refuse_infinite(f"{folder}: {name}", p.data)
    return model.eval(), _tokenizer(folder, shape.vocab_size)


def _shape(file):
    """The shape in config.json.  Raises ValueError if it is none, or of a model of another form."""
    about = _read_json(file)
    for name, value in FORM.items():
        got = about.get(name, value if name != "model_type" else None)
        check(got == value, file, f"{name} {value}", got, "no other form is known here")
    for name in SIZES:
        size = about.get(name)
        right = type(size) is int or (size is None and name == "n_inner")
        check(right, f"{file}: {name}", "a whole number", size, "copy it again")
    epsilon = about.get("layer_norm_epsilon", 1e-5)
    right = isinstance(epsilon, float) and 0 < epsilon < 1
    check(right, f"{file}: layer_norm_epsilon", "a number between 0 and 1", epsilon, "mend it")
    try:
        return GPTConfig(*(about.get(name) for name in SIZES), layer_norm_epsilon=epsilon)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _refuse_larger(folder, shape, arrays):
    """Raise ValueError if config.json asks for far more than the files hold, before a model of that
    size is built: a few letters could ask for more memory than any machine has."""
    longest = max((n for a in arrays.values() for n in a.shape), default=0)
    for name, asked, held in (
        ("n_layer", shape.n_layer, len(arrays)),
        ("n_embd", shape.n_embd, longest),
        ("n_inner", shape.n_inner or 0, longest),
        ("vocab_size", shape.vocab_size, 2**31),  # ids are int32
        ("n_positions", shape.block_size, 2**31),
    ):
        where, most = f"{folder}: {name}", f"at most {held}, as its weights are"
        check(asked <= held, where, most, asked, "copy it again")


def _refuse_infinite(where, a):
    finite = np.isfinite(a).all()
    check(finite, where, "finite numbers", "NaN or infinity", "take another model")


def _weights(folder):
    """{name without prefix: array} of all files; stored masks are left out. As transformers does,
    model.safetensors is read if it is there, else the files that the index names."""
    index, names = folder / "model.safetensors.index.json", ["model.safetensors"]
    parts = next(folder.glob("model-*-of-*.safetensors"), None)
    if not (folder / names[0]).is_file() and (parts or index.is_file()):
        names = _read_json(index).get("weight_map")
        names = [*names.values()] if isinstance(names, dict) else [None]
        right = all(isinstance(name, str) and Path(name).name == name for name in names)
        check(right, index, "the name of a file for each weight", "something else", "copy it again")
    arrays = {}
    for file in [folder / name for name in sorted(set(names))]:
        if not file.is_file():
            need = "expected the weights as .safetensors, found no file"
            raise FileNotFoundError(f"{file}: {need}; transformers' save_pretrained writes them")
        for key, a in _arrays(file):
            name = key.removeprefix(PREFIX)
            check(name not in arrays, file, f"{name} once", "it twice", "take another model")
            arrays[name] = a
    return arrays


def _arrays(file):
    """Yield (name, array) of a .safetensors file. bfloat16, which NumPy lacks, is the upper half of
    a float32."""
    open(file, "rb").close()  # safetensors would call a file damaged that nobody may read
    try:
        safe_open(file, "numpy")  # says if the header and the file do not fit together
    except SafetensorError as error:
        raise ValueError(f"{file}: damaged ({str(error).splitlines()[0]}); copy it again") from None
    data = np.memmap(file, np.uint8, "r")
    begin = 8 + int.from_bytes(data[:8].tobytes(), "little")
    header = json.loads(data[8:begin].tobytes())
    header.pop("__metadata__", None)
    for name, about in header.items():
        if STORED.fullmatch(name.removeprefix(PREFIX)):
            continue
        dtype, (start, end) = about["dtype"], about["data_offsets"]
        check(
            dtype in DTYPES, f"{file}: {name}", f"one of {', '.join(DTYPES)}", dtype, "convert it"
        )
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


# ---- in: the tokenizer -------------------------------------------------------------------------


def _tokenizer(folder, size):
    """The tokenizer of tokenizer.json, or of vocab.json and merges.txt; None if there is none.

    size: how many tokens the model knows. Raises ValueError if a file asks for what would give
    other ids than here.
    """
    file, options = folder / "tokenizer.json", folder / "tokenizer_config.json"
    options = _read_json(options) if options.is_file() else {}
    for name in "add_prefix_space", "add_bos_token":
        check(not options.get(name), folder, f"{name} false", "true", "no other is known here")
    if file.is_file():
        tokenizer = _of_one_file(file)
    elif (folder / "vocab.json").is_file():
        file = folder / "vocab.json"
        tokenizer = BPETokenizer.read(file, folder / "merges.txt")
        listed = options.get("added_tokens_decoder") or {}  # {"50256": {"content": ...}}
        named = [t.get("content") for t in listed.values()] if listed else [END]
        special = {t: i for i, t in enumerate(tokenizer.vocab) if t in named}
        tokenizer = SpecialTokenizer(tokenizer.vocab, tokenizer.merges, special=special)
    else:
        return None
    _refuse_other(file, tokenizer, size)
    return tokenizer


def _refuse_other(where, tokenizer, size):
    """Raise ValueError if this is no tokenizer of a model of `size` tokens. It has one for each
    character; behind those of byte pairs a model may have ids to spare."""
    exact = isinstance(tokenizer, CharTokenizer)
    got, need = tokenizer.vocab_size, f"{size} tokens, as the model has"
    fits = got == size if exact else got <= size
    check(fits, where, need if exact else f"at most {need}", got, "take the model's own")


def _of_one_file(file):
    """The tokenizer of tokenizer.json."""
    about = _read_json(file)
    try:
        vocab, added = dict(about["model"]["vocab"]), about.get("added_tokens") or []
        special = {t["content"]: t["id"] for t in added}
        vocab |= special
        tokens = sorted(vocab, key=vocab.get)
        merges = [m if isinstance(m, str) else " ".join(m) for m in about["model"]["merges"]]
        in_order = [vocab[t] for t in tokens] == [*range(len(tokens))]
        if not in_order or not all(isinstance(t, str) and t for t in tokens):
            raise ValueError
        wrong = _unlike(about, added)
    except (AttributeError, KeyError, TypeError, ValueError):
        need = "BPE with an id for each token from 0 on"
        raise ValueError(f"{file}: expected {need}, got something else; copy it again") from None
    known = "byte-level BPE as GPT-2's"
    check(not wrong, file, known, ", ".join(wrong), "no other is known here")
    if about.get("pre_tokenizer") is None and tokens:
        alone = not merges and not added and all(len(t) == 1 for t in tokens)
        check(alone, file, known, "no pre_tokenizer", "no other is known here")
        return CharTokenizer("".join(tokens))
    return SpecialTokenizer(tokens, merges, file, special)


def _unlike(about, added):
    """What in tokenizer.json would give other ids than here. (Truncation and padding would, too,
    but transformers leaves them alone unless it is asked for them.)"""
    form, cut = about["model"], about.get("pre_tokenizer") or CUT
    behind = about.get("post_processor") or {"type": "ByteLevel"}  # which changes places, no ids
    adds = behind["type"] != "ByteLevel"
    if behind["type"] == "TemplateProcessing":
        adds = behind.get("special_tokens")  # without any it adds nothing
    names = "dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"
    found = {name: form.get(name) for name in names} | {
        f"a model {form.get('type')}": form.get("type", "BPE") != "BPE",
        f"a pre_tokenizer {cut['type']}": cut["type"] != "ByteLevel",
        "add_prefix_space": cut.get("add_prefix_space"),
        "no use_regex": not cut.get("use_regex", True),
        "a normalizer": about.get("normalizer"),
        f"a post_processor {behind['type']}": adds,
    }
    for token in added:
        for name in "single_word", "lstrip", "rstrip":
            found[f"{name} for {token['content']}"] = token.get(name)
    return [what for what, given in found.items() if given]


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


# ---- commands ----------------------------------------------------------------------------------


def writer(path, library, folder):
    """The model of a folder of Hugging Face's, and an application that writes with it."""
    model, tokenizer = load(path)
    need = "tokenizer.json, or vocab.json and merges.txt"
    check(tokenizer is not None, path, need, "neither", "copy them, too")
    c = model.config
    shape = {name: getattr(c, name) for name in ("n_layer", "n_head", "n_embd", "block_size")}
    kind = "char" if isinstance(tokenizer, CharTokenizer) else "bpe"
    config = Config(model="gpt2", tokenizer=kind, out=str(path), **shape)
    application = Writing(config, folder)
    application.tokenizer = tokenizer
    return model.to(library, model.embedding.weight.data.dtype), application


def main(words=None):
    """Write a run of train.py as a folder; a user's mistake ends in one line and exit code 2."""
    form = argparse.RawDescriptionHelpFormatter
    parser = Parser("python -m minigpt.hub", description=__doc__, formatter_class=form)
    parser.add_argument("run", metavar="RUN", help="a run's folder, or a checkpoint in it")
    parser.add_argument("folder", metavar="FOLDER", help="a new or empty folder")
    args = parser.parse_args(words)
    try:
        model, application = runs.load(args.run, np, Path("data"))
        save(model, getattr(application, "tokenizer", None), args.folder)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    there = quoted(args.folder)
    print(f"{there}: AutoModelForCausalLM.from_pretrained opens it, and sample.py {there}")


if __name__ == "__main__":
    replace_unknown(sys.stdout, sys.stderr)
    main()
