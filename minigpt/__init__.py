"""minigpt: large models from scratch. The table of contents, in parts and in reading order.

A chapter uses earlier chapters only, so nothing has to be taken on trust. The numbers are minutes
of careful reading. The path alone explains how a GPT learns and writes; after it, every part can be
read by itself. `python -m tests.golden` prints how much of each file a training really runs.

A FIRST LOOK, of which the path explains every line
tiny.py                  20  a whole GPT in 80 lines, with its training and its writing

THE PATH, GPT-2 from the derivative to the sample
files.py                  4  writing a file whole or not at all; what a folder holds
messages.py               2  what the program says: lines, errors with a remedy, nearest names
engine/arrays.py          3  which library owns an array: NumPy or CuPy
engine/autograd.py       25  Tensor (a value), Node (its history), and the walk back: backward
engine/ops.py            25  the primitive operations, each with its derivative
engine/guards.py          4  what is refused: ids out of range, shapes that do not fit
engine/functional.py     25  the formulas of GPT-2, each defined once, in primitive operations
nn/module.py             12  Module: parameters and their names; all of them as one flat vector
nn/layers.py              5  Linear, Embedding, LayerNorm, Dropout, MLP
nn/attention.py           8  attention, and what it remembers: keys and values
nn/language.py           12  the block, the residual stream, the head: a language model
nn/gpt.py                10  GPT-2's form, and GPT-3's
nn/presets.py             3  the papers' sizes
datasets/tokenizers.py    5  text to numbers and back
datasets/stream.py        4  items in random order, each once per epoch
datasets/encodings.py     3  bytes to text, in UTF-8 or GB18030: a first reader can skip it
datasets/text.py         15  texts, windows, and what a model must beat: counting
datasets/large.py         8  texts too large for memory: a first reader can skip it
training/optim.py        12  AdamW and SGD, clipping, the learning rate's schedule
training/config.py       10  the options: one dataclass is command line and JSON
training/folder.py        5  one run in a folder at a time, and none lost or mixed with another
training/checkpoint.py    8  one file that holds a run, written whole or not at all
training/strangers.py     4  checkpoints of others: what is refused of them
training/stopping.py      2  Ctrl-C, a closed terminal, kill
training/ranks.py         2  what training asks of the processes that share it
training/trainer.py      20  the training loop
generate.py              10  temperature, top-k, top-p; text as it comes
drawing.py                5  pictures as SVG: how the loss fell
applications/application.py  10  what a run is for: the six steps, as train.py calls them
applications/writing.py  12  text goes on

THE RECIPE, what measurement adds to GPT-2
engine/recipe.py          8  rotary positions, token shift, ReLU^2
nn/ngrams.py              5  embeddings of what the last few tokens say together
nn/recipe.py             10  the block and the model that use them
training/muon.py          8  Muon: all directions of a matrix learn at one pace

OTHER MECHANISMS
engine/recurrence.py      8  RNN, LSTM and GRU
nn/recurrence.py          5  recurrence as a mixer
engine/convolution.py     7  convolution, ReLU, pooling
nn/convolution.py         6  convolution as a layer, and as a causal mixer

OTHER APPLICATIONS
datasets/bpe.py          18  byte-level BPE: frequent strings as tokens, GPT-2's files
datasets/stories.py      12  stories, and questions about them
datasets/numerals.py      5  numbers in English and in Chinese
datasets/tasks.py        12  questions and answers, translation, pairs: tasks as text
datasets/splits.py        4  which examples are learned from, and which are held out
datasets/formats.py       8  one file as an array: .npy, .wav, images
datasets/signals.py      12  images and sounds as arrays
datasets/tables.py       18  tables as arrays
datasets/examples.py     10  the examples that classifiers learn from
datasets/catalogue.py     6  which kind of data a name stands for
nn/classifier.py         10  classifiers: a CNN, or tokens through the recipe's blocks
training/scores.py       12  accuracy, AUC, sensitivity, exact match
applications/answering.py    6  questions, translation and pairs
applications/classifying.py  6  images, sounds and tables
training/defaults.py      2  the options' defaults for every kind of data and model
training/gradients.py     5  is the gradient right? train.py --check-gradients
training/costs.py         5  memory, time, energy and CO2 of a training
applications/options.py   8  from the command line to a run
applications/plan.py     12  what a model would need, and what its training would cost: --dry-run
applications/runs.py      2  a run's model and application, from its checkpoint
hub.py                   12  Hugging Face's folders, in and out
origin.py                 5  fine-tuning: a run that begins with what another has learned
inside.py                10  what a trained model sees: sample.py --explain, --look
spy.py                    8  what tiny.py computes, noted op by op
look.py                  10  source that shows its own gradients: python -m minigpt.look
__main__.py               3  python -m minigpt: your runs, and what to do next

SPEED, which changes how long it takes and nothing else
engine/fast_numpy.py     30  fast pairs, forward and backward by hand, on NumPy
engine/fast_convolution.py  10  the same for convolution
engine/fast_recurrence.py   12  the same for recurrence
engine/fast_cupy.py      25  the same on CuPy, with engine/kernels.cu: CUDA, where threads meet
engine/fast_elementwise.py   5  the same on CuPy, where each number is on its own
engine/device.py          6  choosing a GPU; an allocator that keeps its pages
training/fast_optim.py    6  optimizers in place; Muon's matrices shared out
training/gpu.py          10  a step on a GPU, for which the CPU does not wait
training/parallel.py     10  processes that add up their gradients
training/processes.py    12  starting them, ending them, and how many pay
training/mpi.py           8  the same on several machines or GPUs, which MPI connects
"""

from minigpt.engine.autograd import Tensor, no_grad

__all__ = ["Tensor", "no_grad"]
__version__ = "0.1.0"
