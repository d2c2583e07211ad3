"""Hugging Face's tokenizers: a text has the same ids there and here, or the files are refused."""

import json

import numpy as np
import pytest

from minigpt import hub
from minigpt.datasets.bpe import BPETokenizer
from minigpt.datasets.tokenizers import CharTokenizer
from minigpt.nn.gpt import GPT2, GPTConfig

TEXT = "The cat sat on the mat; the dog did not. ¡Señor! 漢字 and 1,024 numbers\n\tagain.  "


@pytest.fixture(scope="module")
def transformers():
    module = pytest.importorskip("transformers")
    module.logging.set_verbosity_error()
    return module


def model(vocab_size):
    return GPT2(GPTConfig(vocab_size, 64, 1, 1, 8), np.random.default_rng(1))


@pytest.mark.parametrize("kind", [CharTokenizer.train, lambda text: BPETokenizer.train(text, 300)])
def test_transformers_gives_a_text_the_same_ids(transformers, tmp_path, kind):
    tokenizer = kind(TEXT * 3)
    hub.save(model(tokenizer.vocab_size), tokenizer, tmp_path / "there")
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
    tokenizer = hub._tokenizer(tmp_path, 300)
    assert tokenizer.encode(text).tolist() == made.encode(text).ids
    assert tokenizer.decode(tokenizer.encode(text)) == text


def written(folder):
    """A tokenizer.json with 299 tokens and END, which is looked for in texts -> it, as a dict."""
    tokenizer = BPETokenizer.train(TEXT * 3, 299)
    about = hub._described(model(300), tokenizer)["tokenizer.json"]
    about["added_tokens"] = [{"id": 299, "content": hub.END}]
    (folder / "tokenizer.json").write_text(json.dumps(about))
    return about


def test_added_tokens_of_all_kinds_are_found_as_transformers_finds_them(transformers, tmp_path):
    written(tmp_path)
    twin = transformers.GPT2Tokenizer.from_pretrained(tmp_path)
    twin.add_tokens(["dog not", "<a>", "<a>b"])  # no special ones; of two, the longer counts
    twin.add_special_tokens({"pad_token": "<pad>"})
    twin.save_pretrained(tmp_path / "there")
    text = f"{hub.END}the dog not<a>c<a>b <pad>  {TEXT}"
    tokenizer = hub._tokenizer(tmp_path / "there", len(twin))
    assert tokenizer.encode(text).tolist() == twin(text)["input_ids"]
    hub.save(model(len(twin)), tokenizer, tmp_path / "again")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    assert again(text)["input_ids"] == twin(text)["input_ids"]
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["eos_token_id"] == again.eos_token_id == twin.eos_token_id


@pytest.mark.parametrize("listed", [None, "<|other|>"])
def test_the_two_files_alone_are_read_as_transformers_reads_them(transformers, tmp_path, listed):
    BPETokenizer.train(TEXT * 3, 300).save(tmp_path)
    ids = json.loads((tmp_path / "vocab.json").read_text())
    ids |= {"<|other|>": len(ids), hub.END: len(ids) + 1}  # the first is special only if listed
    (tmp_path / "vocab.json").write_text(json.dumps(ids))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    if listed:  # as transformers 4 does it
        added = {str(i): {"content": token} for token, i in [*ids.items()][-2:]}
        config = {"tokenizer_class": "GPT2Tokenizer", "added_tokens_decoder": added}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    twin, text = transformers.AutoTokenizer.from_pretrained(tmp_path), f"<|other|>{hub.END}{TEXT}"
    assert hub._tokenizer(tmp_path, len(ids)).encode(text).tolist() == twin(text)["input_ids"]


def test_characters_that_a_vocabulary_lacks_are_left_out_there_too(transformers, tmp_path):
    tokenizer = CharTokenizer.train("to be, or not")
    hub.save(model(tokenizer.vocab_size), tokenizer, tmp_path / "there")
    twin = transformers.AutoTokenizer.from_pretrained(tmp_path / "there")
    assert twin("to XYZ be")["input_ids"] == tokenizer.encode("to  be").tolist()


UNLIKE = {
    "add_prefix_space": {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}},
    "no use_regex": {"pre_tokenizer": {"type": "ByteLevel", "use_regex": False}},
    "a pre_tokenizer Whitespace": {"pre_tokenizer": {"type": "Whitespace"}},
    "a normalizer": {"normalizer": {"type": "Lowercase"}},
    "a post_processor BertProcessing": {"post_processor": {"type": "BertProcessing"}},
    "a post_processor TemplateProcessing": {
        "post_processor": {"type": "TemplateProcessing", "special_tokens": {hub.END: {"ids": [0]}}}
    },
    "ignore_merges": {"model": {"ignore_merges": True}},
    "end_of_word_suffix": {"model": {"end_of_word_suffix": "</w>"}},
    "a model Unigram": {"model": {"type": "Unigram"}},
    "lstrip for <m>": {"added_tokens": [{"id": 299, "content": "<m>", "lstrip": True}]},
}


@pytest.mark.parametrize("what", UNLIKE)
def test_a_tokenizer_that_would_give_other_ids_is_refused_by_name(tmp_path, what):
    about = written(tmp_path)
    about |= UNLIKE[what] | {"model": about["model"] | UNLIKE[what].get("model", {})}
    (tmp_path / "tokenizer.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=f"byte-level BPE as GPT-2's, got {what}; "):
        hub._tokenizer(tmp_path, 400)


@pytest.mark.parametrize("option", ["add_prefix_space", "add_bos_token"])
def test_options_that_would_change_the_ids_are_refused_by_name(tmp_path, option):
    written(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({option: True}))
    with pytest.raises(ValueError, match=f"expected {option} false, got true"):
        hub._tokenizer(tmp_path, 400)


@pytest.mark.parametrize(
    "about",
    [
        {"model": 1},
        {"model": {"vocab": {"a": "x"}, "merges": []}},
        {"model": {"vocab": {"a": 0}, "merges": [1]}},
        {"model": {"vocab": {"a": 0, "c": 2}, "merges": []}},
        {"model": {"vocab": {"a": 0}, "merges": []}, "added_tokens": [{"content": 5, "id": 1}]},
        {"model": {"vocab": {"a": 0}, "merges": []}, "added_tokens": [{"content": "", "id": 1}]},
        {"model": {"vocab": {"a": 0}, "merges": []}, "pre_tokenizer": "x"},
        {"model": {"vocab": {"a": 0}, "merges": []}, "post_processor": {"a": 1}},
    ],
)
def test_a_tokenizer_that_is_none_is_refused_in_one_line(tmp_path, about):
    (tmp_path / "tokenizer.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="expected BPE with an id for each token") as caught:
        hub._tokenizer(tmp_path, 400)
    assert "\n" not in str(caught.value)


def test_a_model_may_have_more_ids_than_tokens_and_not_fewer(tmp_path):
    written(tmp_path)
    tokenizer = hub._tokenizer(tmp_path, 320)
    assert tokenizer.decode([299, 319]) == hub.END  # 319 only fills the table
    with pytest.raises(ValueError, match="tokenizer.json: expected at most 200 .*got 300"):
        hub._tokenizer(tmp_path, 200)
    with pytest.raises(ValueError, match="at most 200 tokens, as the model has, got 300"):
        hub.save(model(200), tokenizer, tmp_path / "there")
    assert not (tmp_path / "there").exists()
