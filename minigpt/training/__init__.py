"""How a model learns: configuration, optimizers, checkpoints, the loop."""

from minigpt.engine.functional import FILES

OPTIMIZERS = {  # the names that users type, and what look_up (messages.py) imports for them
    "muon": "minigpt.training.muon:Muon",
    "adamw": "minigpt.training.optim:AdamW",
    "sgd": "minigpt.training.optim:SGD",
}

for library in ("numpy", "cupy"):  # where fast() finds the steps that stand in for the formulas
    FILES[library].append("minigpt.training.fast_optim")
