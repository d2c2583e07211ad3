"""The grader: right rules pass, and a wrong one is named with the element that is wrong."""

import textwrap

import pytest

from tests import grade

RIGHT = """
import numpy as np

def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)

def softmax_backward(dy, x):
    p = softmax(x)
    return p * (dy - (p * dy).sum(-1, keepdims=True))

def matmul(a, b):
    return a @ b

def matmul_backward(dy, a, b):
    return dy @ b.T, a.T @ dy

def cross_entropy(z, t):
    return -np.log(softmax(z)[np.arange(len(t)), t]).mean()

def cross_entropy_backward(dloss, z, t):
    return dloss * (softmax(z) - np.eye(z.shape[1])[t]) / len(t)

def layer_norm(x, g, b):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * g + b

def layer_norm_backward(dy, x, g, b):
    c = x - x.mean(-1, keepdims=True)
    s = np.sqrt((c * c).mean(-1, keepdims=True) + 1e-5)
    h, d = c / s, dy * g
    dx = (d - d.mean(-1, keepdims=True) - h * (d * h).mean(-1, keepdims=True)) / s
    return dx, (dy * h).sum(0), dy.sum(0)

def gelu(x):
    return x / 2 * (1 + np.tanh(0.7978845608028654 * (x + 0.044715 * x**3)))

def gelu_backward(dy, x):
    t = np.tanh(0.7978845608028654 * (x + 0.044715 * x**3))
    slope = 0.7978845608028654 * (1 + 3 * 0.044715 * x**2)
    return dy * ((1 + t) / 2 + x / 2 * (1 - t * t) * slope)

def shares(q, k):
    z = q @ k.swapaxes(2, 3) / np.sqrt(q.shape[3])
    return softmax(np.where(np.tri(q.shape[2]) > 0, z, -1e30))

def attention(q, k, v):
    return shares(q, k) @ v

def attention_backward(dy, q, k, v):
    p, D = shares(q, k), q.shape[3]
    dp = dy @ v.swapaxes(2, 3)
    dz = p * (dp - (p * dp).sum(-1, keepdims=True)) / np.sqrt(D)
    return dz @ k, dz.swapaxes(2, 3) @ q, p.swapaxes(2, 3) @ dy

def adamw(w, g, m, v, rate, step):
    m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
    update = m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.99**step)) + 1e-8)
    return w - rate * (update + 0.1 * w), m, v
"""


def graded(text):
    names = {}
    exec(textwrap.dedent(text), names)
    return grade.grade(names)


def test_right_rules_pass():
    found = graded(RIGHT)
    assert found.keys() == {*grade.RULES, "adamw"}
    assert not any(found.values()), found


@pytest.mark.parametrize(
    "right, wrong, name, says",
    [
        ("p * (dy - (p * dy).sum(-1, keepdims=True))", "p * dy", "softmax", "gradient of x is"),
        ("dy @ b.T, a.T @ dy", "dy @ b.T, b * 0", "matmul", "the gradient of b is wrong at [0, 0]"),
        ("[t]) / len(t)", "[t])", "cross_entropy", "the gradient of z is wrong at [0, 0]"),
        (" - h * (d * h).mean(-1, keepdims=True)", "", "layer_norm", "the gradient of x is wrong"),
        ("return dx, (dy * h).sum(0), dy.sum(0)", "return dx, dy * h, dy", "layer_norm",
         "the gradient of g: expected shape (6,), got (3, 6)"),
        ("3 * 0.044715", "2 * 0.044715", "gelu", "the gradient of x is wrong at"),
        ("dz @ k, dz.swapaxes(2, 3) @ q,", "dz @ q, dz.swapaxes(2, 3) @ k,", "attention",
         "the gradient of q is wrong at [0, 0, 1, 0]"),
        ("np.tri(q.shape[2]) > 0", "np.tri(q.shape[2]) >= 0", "attention", "the value is wrong"),
        ("m / (1 - 0.9**step)", "m", "adamw", "w after step 1 is wrong at [0]"),
        ("return x / 2 * (1 + np.tanh", "return 1 / 0 * (1 + np.tanh", "gelu", "ZeroDivisionError"),
    ],
)  # fmt: skip
def test_a_wrong_rule_is_named_with_what_is_wrong(right, wrong, name, says):
    assert right in RIGHT
    found = graded(RIGHT.replace(right, wrong))
    assert any(says in line for line in found[name]), found[name]


def test_gradients_may_come_as_a_list():
    assert not graded(RIGHT.replace("dy @ b.T, a.T @ dy", "[dy @ b.T, a.T @ dy]"))["matmul"]


def test_a_rule_that_writes_into_its_input_spoils_nothing():
    found = graded("def softmax(x):\n    x[:] = 0\n    return x\n")
    assert len(found["softmax"]) == 1 and not graded(RIGHT)["softmax"]


def test_the_command_says_what_is_right_and_ends_with_an_exit_code(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text(RIGHT)
    assert grade.main([str(file)]) == 0
    assert "attention: right" in capsys.readouterr().out
    file.write_text(RIGHT.replace("dy @ b.T", "dy @ b.T * 2"))
    assert grade.main([str(file)]) == 1
    assert "the gradient of a is wrong at [0, 0]" in capsys.readouterr().out
    file.write_text("x = 1")
    assert grade.main([str(file)]) == 2
    assert "found none" in capsys.readouterr().out
    assert grade.main([str(tmp_path / "none.py")]) == 2
