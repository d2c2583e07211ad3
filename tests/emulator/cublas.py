"""cublas.gemmStridedBatchedEx on raw pointers: matrices column by column, as cuBLAS has them."""

import ctypes
from collections import deque

import numpy as np
from numpy.lib.stride_tricks import as_strided

KINDS = {0: ctypes.c_float, 1: ctypes.c_double}  # CUDA_R_32F, CUDA_R_64F
COMPUTES = {68: 0, 77: 0, 70: 1}  # compute type -> the type of the matrices that it takes
TF32 = 77
recent = deque(maxlen=16)  # the arrays whose pointers were asked for last
calls = []  # (m, n, k, batch, compute type) of each product


class BadCall(RuntimeError):
    """What cuBLAS would have answered with an error, or read from somewhere else."""


def pointer(a):
    """The address of a's first number, for `a.data.ptr`."""
    recent.append(a)
    return a.ctypes.data


def gemmStridedBatchedEx(
    handle, ta, tb, m, n, k, alpha, A, a_kind, lda, a_far, B, b_kind, ldb, b_far, beta,
    C, c_kind, ldc, c_far, batch, compute, algorithm,
):  # fmt: skip
    """C <- alpha op(A) op(B) + beta C for each of `batch` matrices, op transposing if ta or tb."""
    if {a_kind, b_kind, c_kind} != {COMPUTES.get(compute)}:
        raise BadCall(f"compute type {compute} does not take matrices of type {a_kind}")
    a = matrices(A, a_kind, *((k, m) if ta else (m, k)), lda, a_far, batch)
    b = matrices(B, b_kind, *((n, k) if tb else (k, n)), ldb, b_far, batch)
    c = matrices(C, c_kind, m, n, ldc, c_far, batch)
    if compute == TF32:
        a, b = rounded(a), rounded(b)
    alpha, beta = (KINDS[c_kind].from_address(at).value for at in (alpha, beta))
    y = alpha * ((a.swapaxes(1, 2) if ta else a) @ (b.swapaxes(1, 2) if tb else b))
    c[...] = y if beta == 0 else y + beta * c
    calls.append((m, n, k, batch, compute))


def matrices(at, kind, rows, columns, leading, far, batch):
    """`batch` matrices: columns lie `leading` numbers apart, matrices `far`."""
    item = ctypes.sizeof(KINDS[kind])
    size = (batch - 1) * far + (columns - 1) * leading + rows
    if min(rows, columns, batch) < 1 or leading < rows or at % item:
        raise BadCall(f"{batch} matrices of {rows} x {columns}, leading dimension {leading}")
    if not any(start <= at and at + size * item <= end for start, end in map(extent, recent)):
        raise BadCall(f"{size} numbers from there on lie in no array")
    flat = np.ctypeslib.as_array((KINDS[kind] * size).from_address(at))
    return as_strided(flat, (batch, rows, columns), (far * item, item, leading * item))


def extent(a):
    """First and last address of all that belongs to a's memory."""
    while isinstance(a.base, np.ndarray):
        a = a.base
    return a.ctypes.data, a.ctypes.data + a.nbytes


def rounded(a):
    """float32 with 10 bits of fraction instead of 23, to the nearest."""
    bits = np.ascontiguousarray(a).view(np.uint32)
    return ((bits + np.uint32(0xFFF) + (bits >> 13 & 1)) & np.uint32(0xFFFFE000)).view(np.float32)
