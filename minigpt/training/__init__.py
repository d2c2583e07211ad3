"""How a model learns: optimizers, options, checkpoints, the loop. Here optimizers have their names.

An optimizer's class is imported when it is asked for, and so are the fast steps that stand in for
the formulas of optimizers.
"""

from minigpt.engine.functional import PAIRS
from minigpt.messages import look_up

OPTIMIZERS = {
    "muon": "minigpt.training.muon:Muon",
    "adamw": "minigpt.training.optim:AdamW",
    "sgd": "minigpt.training.optim:SGD",
}


def optimizer_class(name):
    """The class of the optimizer of this name: optimizer_class(name)(flat, weight_decay)"""
    return look_up(OPTIMIZERS, name, "--optimizer")


PAIRS["numpy"].append("minigpt.training.fast_optim")
PAIRS["cupy"].append("minigpt.training.gpu")
