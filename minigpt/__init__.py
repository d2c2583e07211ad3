"""minigpt: large models from scratch. The table of contents, in reading order.

messages.py              what the program says: lines, errors with a remedy, nearest names
engine/arrays.py         NumPy or CuPy: who owns an array, and moving it
engine/device.py         choosing a GPU; the allocator
engine/autograd.py       Tensor (a value), Node (its history), record, backward, no_grad
engine/ops.py            the primitive operations, each with its derivative
engine/functional.py     the formulas of deep learning, each defined once, in primitive operations
engine/fast_numpy.py     fast forward and backward pairs for some of them
engine/fast_cupy.py      the same for CuPy
engine/fast_convolution.py  fast pairs of convolution on NumPy
engine/convolution.py    convolution, ReLU, pooling, defined in primitive operations
engine/fast_recurrence.py   fast pairs of recurrence on NumPy
engine/recurrence.py     RNN, LSTM and GRU, defined in primitive operations
nn/module.py             Module: parameters, state_dict, train and eval; initialisers; flat vectors
nn/layers.py             Linear, Embedding, LayerNorm, Dropout, MLP
nn/attention.py          the attention mixer and its state, keys and values
nn/recurrence.py         the recurrence mixer: RNN, LSTM, GRU
nn/convolution.py        convolution as a layer, and as a causal mixer
nn/language.py           Block, LanguageModel, its state
nn/gpt.py                GPT, GPT-2 and GPT-3: their form and config
nn/presets.py            the papers' sizes, counted; Hugging Face's names
nn/families.py           every model by its name: one block, three mechanisms
nn/classifier.py         classifiers: a CNN, or rows, patches, columns through the same blocks
datasets/bpe.py          byte-level BPE: frequent strings as tokens, GPT-2's files
datasets/tokenizers.py   text <-> ids
datasets/stream.py       items in random order, each once per epoch
datasets/text.py         corpora, windows, and what a model must beat
datasets/splits.py       which images, sounds and rows are held out
datasets/signals.py      images and sounds as arrays
datasets/tables.py       CSV files, and their columns as numbers
datasets/examples.py     examples for classifiers: images, sounds, rows of tables
datasets/stories.py      a small world, its sentences, and questions about it
datasets/numerals.py     numbers in English and Chinese
datasets/tasks.py        questions and answers, numerals, pairs, as text
datasets/catalogue.py    which kind of data a word of --data names
training/ranks.py        the interface of a rank: one of the processes that train together
training/parallel.py     several processes that share each batch
training/optim.py        Muon, AdamW, SGD, clipping, schedules
training/defaults.py     the options' defaults for each kind of data and model
training/costs.py        memory, time, energy and CO2 of a training
training/config.py       one dataclass <-> command line <-> JSON
training/checkpoint.py   one safetensors file, written atomically
training/scores.py       accuracy, AUC, sensitivity, exact match
training/trainer.py      the training loop
generate.py              temperature, top-k, top-p; text as it comes
"""

from minigpt.engine.autograd import Tensor, no_grad

__all__ = ["Tensor", "no_grad"]
