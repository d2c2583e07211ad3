"""What the options of train.py are by default for other data and models than a GPT on text."""

# With --init: small steps, as large ones undo some of what the model knows; and a small text is
# learned by heart within a few readings, so the best moment must not lie between two validations.
# 50 kB of Shakespeare end at 1.55 nats, with large steps at 1.59. What is new to a model, such as
# writing out abbreviations, needs large ones.
INIT = {"learning_rate": 1e-3, "eval_every": 25}

STATEFUL = {"block_size": 128, "batch_size": 16}
ROWS = {"block_size": 1, "batch_size": 64, "n_embd": 64, "eval_every": 50}
ROWS |= {"optimizer": "adamw", "learning_rate": 4e-3, "steps": 1500, "warmup": 50, "patience": 99}
ROWS |= {"dropout": 0.1}
DEFAULTS = {  # (kind or name of data, model or "" for any): the options that differ there
    **{("text", name): STATEFUL for name in ("lstm", "gru", "rnn")},
    ("task", ""): {"n_layer": 4, "n_embd": 64, "batch_size": 32, "eval_every": 250, "patience": 99},
    **{("task", name): {"n_layer": 2} for name in ("lstm", "gru", "rnn")},
    # All stories follow one rule, so decay can be lower: 99.7 % exact; with 0.1 it is 94.2 %.
    ("qa", ""): {"tokenizer": "bpe", "minutes": 5.25, "weight_decay": 0.05},
    ("image", ""): ROWS,
    # Muon: 98.3 % of the digits instead of 97.8 with AdamW, the mean of three seeds.
    ("image", "conv"): {"n_embd": 128, "learning_rate": 1e-3, "dropout": 0.5, "optimizer": "muon"},
    ("image", "lstm"): {"learning_rate": 2e-3, "dropout": 0.2},
    ("sound", ""): ROWS | {"n_embd": 128},
    ("sound", "gpt"): {"optimizer": "muon"},
    ("table", ""): ROWS
    | {"n_layer": 1, "n_embd": 16, "learning_rate": 2e-3, "steps": 300, "eval_every": 10},
}
