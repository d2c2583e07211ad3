"""Module: something with parameters. Their first values, and all of them as one flat vector."""

import numpy as np

from minigpt.engine.arrays import module_of, to_numpy
from minigpt.engine.autograd import NEVER, Tensor


def normal(rng, shape, std):
    """A parameter drawn from N(0, std^2) by the Generator rng, float32."""
    return Tensor(rng.standard_normal(shape, np.float32) * std, requires_grad=True)


def constant(shape, value):
    """A parameter that starts at value everywhere, float32."""
    return Tensor(np.full(shape, value, np.float32), requires_grad=True)


class Module:
    """Parameters (Tensors) and children (Modules, or lists of them) are attributes set in __init__.

    A module lists its own parameters and then its children's, in the order of assignment. The
    dotted names of the attributes are the names in a checkpoint: blocks.0.mlp.up.weight.
    """

    training = True  # Dropout acts only while this is True
    table = False  # whether its weight is a table of rows to look up, which Muon leaves to AdamW

    def __call__(self, *args, **options):
        return self.forward(*args, **options)

    def children(self):
        """Yield (name, child module); those in a list are called name.0, name.1, ..."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value
            elif isinstance(value, (list, tuple)):
                for i, item in enumerate(value):
                    if isinstance(item, Module):
                        yield f"{name}.{i}", item

    def modules(self):
        """Yield this module and all below it."""
        yield self
        for _, child in self.children():
            yield from child.modules()

    def named_parameters(self):
        """{name: Tensor}; a parameter used in two places is listed once, under its first name."""
        found = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        for name, child in self.children():
            for inner, p in child.named_parameters().items():
                if not any(p is known for known in found.values()):
                    found[f"{name}.{inner}"] = p
        return found

    @property
    def library(self):
        """The library, NumPy or CuPy, that owns the weights."""
        return module_of(next(iter(self.named_parameters().values())).data)

    def parameter_count(self):
        """How many numbers the model has."""
        return sum(p.size for p in self.named_parameters().values())

    def state_dict(self):
        """{name: NumPy array} of all parameters; those already in NumPy are not copied."""
        return {name: to_numpy(p.data) for name, p in self.named_parameters().items()}

    def load_state_dict(self, arrays):
        """Copy arrays into the parameters. Raises ValueError unless names and shapes agree."""
        parameters = self.named_parameters()
        for name in sorted(parameters.keys() | arrays.keys()):
            expected, got = (getattr(x.get(name), "shape", "none") for x in (parameters, arrays))
            if expected != got:
                remedy = "they are of another form of the model; train it anew"
                raise ValueError(f"weights: {name}: expected shape {expected}, got {got}; {remedy}")
        for name, p in parameters.items():
            p.data[...] = module_of(p.data).asarray(arrays[name])

    def train(self, training=True):
        """Turn dropout on (or off) in this module and all below it; returns self."""
        for module in self.modules():
            module.training = training
        return self

    def eval(self):
        """Turn dropout off, for validation and sampling; returns self."""
        return self.train(False)

    def to(self, xp=np, dtype=np.float32):
        """Move the parameters to library xp (numpy or cupy) and dtype, before Flat(model).

        Raises TypeError unless dtype is float32 or float64.
        """
        for p in self.named_parameters().values():
            data = to_numpy(p.data) if xp is np else xp.asarray(p.data)
            p.data, p.grad = Tensor(data.astype(dtype)).data, None
        return self


class Mixer(Module):
    """What carries information between positions.

    mixer(x, mask, state) -> y, state; new_state(B, block_size) is the state before the first token.
    Without a state, None comes back.
    """

    title = "mixer"  # what --dry-run calls it
    limited = False  # whether only block_size positions fit

    def flops(self, T):
        """FLOPs to train on one of T tokens, beyond 6 per weight."""
        return 0


HIDDEN, TABLE, VECTOR = range(3)  # kinds of parameters, in the order in which Flat keeps them
ALIGNED = 16  # numbers: every parameter starts at a multiple of 64 bytes, a line of the cache


def kinds_of(model):
    """{name: kind}: a matrix between layers, a table to look rows up in, or a bias or norm."""
    tables = {id(m.weight) for m in model.modules() if m.table}
    kinds = {}
    for name, p in model.named_parameters().items():
        matrix = TABLE if id(p) in tables else HIDDEN
        kinds[name] = matrix if p.ndim >= 2 else VECTOR
    return kinds


class Flat:
    """All parameters of a model as views of one vector `data`, all gradients of one vector `grad`.

    So a step of the optimizer, the norm of the gradient, and adding up the gradients of several
    processes are one operation each, instead of one for each of a hundred small arrays.

        data:  | hidden matrices | tables | biases and norms |
               0              hidden    decayed

    Muon updates the numbers before `hidden`; `matrices` has the place and the shape of each matrix.
    Weight decay may shrink the numbers before `decayed`, so tables too, but not biases and norms:
    those are few, and a norm whose weight is zero would silence its input.

    A parameter with requires_grad = False is in neither vector: training leaves it as it is, and a
    checkpoint holds it, too. From here on p.data and p.grad are views: write into them, but never
    replace them, and freeze no parameter; the next step raises if that was done. `ranks` are the
    processes that share the vector of gradients (training/ranks.py), None if there are no others.
    """

    def __init__(self, model, ranks=None):
        kinds, named = kinds_of(model), model.named_parameters()
        names = sorted((name for name, p in named.items() if p.requires_grad), key=kinds.get)
        parameters, places, total = [named[name] for name in names], [], 0
        self.hidden = self.decayed = 0
        for name, p in zip(names, parameters, strict=True):
            places.append(slice(total, total + p.size))
            total += -(-p.size // ALIGNED) * ALIGNED  # up to a multiple of ALIGNED
            if kinds[name] == HIDDEN:
                self.hidden = total
            if kinds[name] in (HIDDEN, TABLE):
                self.decayed = total

        if not names:
            raise ValueError("Flat: expected a model with a parameter to train, got none")
        xp, dtype = module_of(parameters[0].data), parameters[0].dtype
        common = ranks.zeros if ranks else None  # memory that all processes see
        self.ranks, self.matrices, self.views, self.changed = ranks, [], [], [*NEVER]
        self.data, self.grad = xp.zeros(total, dtype), (common or xp.zeros)(total, dtype)
        for name, p, place in zip(names, parameters, places, strict=True):
            self.data[place] = p.data.reshape(-1)
            p.data = self.data[place].reshape(p.shape)
            p.grad = self.grad[place].reshape(p.shape)
            p.changed = self.changed  # one list for all
            self.views.append((name, p, p.data, p.grad))
            if kinds[name] == HIDDEN:
                self.matrices.append((place, (p.size // p.shape[-1], p.shape[-1])))
