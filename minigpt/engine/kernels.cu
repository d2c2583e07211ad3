// The formulas of functional.py in which many threads work together, each as one pass over memory.
//
// A GPU runs a function, called a kernel, in thousands of threads at once. They stand in blocks of
// up to 1,024, and all blocks of one launch are the grid. A thread finds its share of the work by
// its place: threadIdx in its block, blockIdx in the grid. 32 neighbours in a block form a warp.
// They step together, and __shfl_xor_sync lets each read a number from the register of another.
// The threads of a block share a little fast memory, __shared__. What one thread has written there
// another may read only after __syncthreads(), which holds every thread of the block until all have
// come so far; without it the result depends on who was faster, which is called a race. Blocks
// cannot wait for each other: what needs several leaves partial results for a second launch.
//
// Fetching a number from memory takes as long as fifty computations. So the threads of a warp read
// neighbouring numbers, which come together, and a kernel goes over a row while the cache holds it.
// Sums are added up in an order that does not depend on which thread is faster: the same run gives
// the same bits again. `python -m tests.emulator` runs this text without a GPU and watches it.

typedef REAL real;        // float, or double where a test compares with NumPy
typedef long long whole;  // 64 bits: the logits of a batch may be more than 2^31 numbers

const real LOWEST = sizeof(real) == 4 ? -3.4e38 : -1.7e308;  // below every finite score or logit
const whole IGNORED = -100;                                   // a target that is not scored

__device__ whole place() { return (whole)blockIdx.x * blockDim.x + threadIdx.x; }  // in the grid
__device__ whole row_of_warp() { return place() / 32; }  // of kernels that give each warp a row
__device__ int lane() { return threadIdx.x % 32; }       // the thread's place in its warp

// The sum over a warp, for each of its threads. With far = 16 every thread adds what the thread 16
// places away has, then 8, 4, 2, 1: after five exchanges each holds the sum of all 32.
__device__ real warp_sum(real x) {
    for (int far = 16; far > 0; far /= 2) x += __shfl_xor_sync(~0u, x, far);
    return x;
}

__device__ real warp_max(real x) {
    for (int far = 16; far > 0; far /= 2) x = max(x, __shfl_xor_sync(~0u, x, far));
    return x;
}

// Each warp's x, one per lane: lane i of every warp gets that of warp i, `none` if there is none.
__device__ real of_all_warps(real x, real none) {
    __shared__ real part[32];
    __syncthreads();  // the slowest thread may still be reading what an earlier call has left
    if (lane() == 0) part[threadIdx.x / 32] = x;
    __syncthreads();
    return lane() < blockDim.x / 32 ? part[lane()] : none;
}

// The sum, or the largest, over a block, for each of its threads.
__device__ real block_sum(real x) { return warp_sum(of_all_warps(warp_sum(x), 0)); }
__device__ real block_max(real x) { return warp_max(of_all_warps(warp_max(x), LOWEST)); }

// ---- attention: softmax over the keys that a query sees, a warp per query ----------------------

struct Keys { whole low, high; };  // a query sees keys low .. high - 1, unless they are padding

__device__ Keys seen(whole row, whole T, whole S, whole window, whole causal) {
    whole query = S - T + row % T;  // its position: the queries are the last T of S
    return {max(whole(0), query - window + 1), causal ? query + 1 : S};
}

// p = softmax(scale z) over the keys that are seen and 0 elsewhere, written over z (B, H, T, S).
// What z holds elsewhere is never used, not even a NaN. mask (B, S), or null
extern "C" __global__ void softmax_forward(
    real* z, const bool* mask, whole H, whole T, whole S, whole rows, whole window, whole causal,
    real scale) {
    whole row = row_of_warp();
    if (row >= rows) return;
    Keys keys = seen(row, T, S, window, causal);
    if (mask) mask += row / T / H * S;
    real *p = z + row * S, top = LOWEST, sum = 0;
    for (whole j = keys.low + lane(); j < keys.high; j += 32)
        if (!mask || mask[j]) top = max(top, p[j] * scale);
    top = warp_max(top);
    for (whole j = keys.low + lane(); j < keys.high; j += 32)
        if (!mask || mask[j]) sum += exp(p[j] * scale - top);
    sum = warp_sum(sum);
    __syncwarp();  // if low > 0, the loop below gives z_j to another thread than those above
    for (whole j = lane(); j < S; j += 32) {
        bool sees = j >= keys.low && j < keys.high && (!mask || mask[j]);
        p[j] = sees ? exp(p[j] * scale - top) / sum : real(0);
    }
}

// dz = scale p (dp - sum over j of p_j dp_j), written over dp; fast_numpy.py derives it.
// A key of weight 0, as every hidden one is, gets 0, whatever dp holds there.
extern "C" __global__ void softmax_backward(
    real* dp, const real* p, whole T, whole S, whole rows, whole window, whole causal, real scale) {
    whole row = row_of_warp();
    if (row >= rows) return;
    Keys keys = seen(row, T, S, window, causal);
    dp += row * S, p += row * S;
    real sum = 0;
    for (whole j = keys.low + lane(); j < keys.high; j += 32)
        if (p[j] != 0) sum += p[j] * dp[j];
    sum = warp_sum(sum);
    __syncwarp();
    for (whole j = lane(); j < S; j += 32) {
        bool counts = j >= keys.low && j < keys.high && p[j] != 0;
        dp[j] = counts ? p[j] * (dp[j] - sum) * scale : real(0);
    }
}

// ---- cross-entropy: a block per target, logits (N, V) ------------------------------------------

// lse = ln sum over j of e^z_j, loss = lse - z_target, or 0 if the target is not scored. Both are
// NaN, which stops a training, if it is no token. One pass finds the largest logit and the sum:
// whenever a larger logit turns up, the sum so far shrinks by e^(old - new).
extern "C" __global__ void cross_entropy_forward(
    const real* z, const whole* targets, real* losses, real* lse, whole V) {
    whole row = blockIdx.x, target = targets[row];
    z += row * V;
    real top = LOWEST, sum = 0;
    for (whole j = threadIdx.x; j < V; j += blockDim.x) {
        real x = z[j];
        if (x > top) sum *= exp(top - x), top = x;
        sum += exp(x - top);
    }
    real most = block_max(top);
    sum = block_sum(sum * exp(top - most));
    if (threadIdx.x > 0) return;
    bool scored = target != IGNORED, known = target >= 0 && target < V;
    lse[row] = known || !scored ? log(sum) + most : real(nan(""));
    losses[row] = scored ? lse[row] - (known ? z[target] : real(0)) : real(0);
}

// dz = share (e^(z - lse) - onehot(target)); *share = dloss / count
extern "C" __global__ void cross_entropy_backward(
    const real* z, const whole* targets, const real* lse, const real* share, real* dz, whole V) {
    whole row = blockIdx.x, target = targets[row];
    z += row * V, dz += row * V;
    for (whole j = threadIdx.x; j < V; j += blockDim.x) {
        real p = exp(z[j] - lse[row]);
        dz[j] = target == IGNORED ? real(0) : (p - (j == target)) * *share;
    }
}

// ---- layer norm: a warp per row, x (N, C) ------------------------------------------------------

// y = h w + b, h = c scale, scale = (mean c^2 + eps)^(-1/2), c = d - mean d, d = x - x_0. The shift
// by the row's first number cancels, but nearly equal numbers far from 0 keep their digits.
extern "C" __global__ void layer_norm_forward(
    const real* x, const real* w, const real* b, real* y, real* means, real* scales, whole N,
    whole C, real eps) {
    whole row = row_of_warp();
    if (row >= N) return;
    x += row * C, y += row * C;
    real first = x[0], mean = 0, squares = 0;
    for (whole i = lane(); i < C; i += 32) mean += x[i] - first;
    mean = warp_sum(mean) / C;
    for (whole i = lane(); i < C; i += 32) {
        real c = x[i] - first - mean;
        squares += c * c;
    }
    real scale = 1 / sqrt(warp_sum(squares) / C + eps);
    for (whole i = lane(); i < C; i += 32) y[i] = (x[i] - first - mean) * scale * w[i] + b[i];
    if (lane() == 0) means[row] = mean, scales[row] = scale;
}

// dx = scale (g - mean g - h mean(g h)) with g = dy w; fast_numpy.py derives it
extern "C" __global__ void layer_norm_backward(
    const real* dy, const real* x, const real* w, const real* means, const real* scales, real* dx,
    whole N, whole C) {
    whole row = row_of_warp();
    if (row >= N) return;
    dy += row * C, x += row * C, dx += row * C;
    real first = x[0], mean = means[row], scale = scales[row], of_g = 0, of_gh = 0;
    for (whole i = lane(); i < C; i += 32) {
        real g = dy[i] * w[i], h = (x[i] - first - mean) * scale;
        of_g += g, of_gh += g * h;
    }
    of_g = warp_sum(of_g) / C, of_gh = warp_sum(of_gh) / C;
    for (whole i = lane(); i < C; i += 32) {
        real g = dy[i] * w[i], h = (x[i] - first - mean) * scale;
        dx[i] = scale * (g - of_g - h * of_gh);
    }
}

// ---- sums over rows: a block per 32 columns and slab of rows -----------------------------------

// Blocks are (32, 8): thread (x, y) has the sum of every eighth row of column x, and here the eight
// are added up. With several slabs the results are partial, and column_sum adds them up in turn.
__device__ void add_eight(real* out, real sum, whole column, whole C) {
    __shared__ real part[8][32];
    __syncthreads();
    part[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y > 0 || column >= C) return;
    for (int i = 1; i < 8; i++) sum += part[i][threadIdx.x];
    out[column] = sum;
}

// sums (slabs, C): the sum of each slab's rows of x (N, C)
extern "C" __global__ void column_sum(const real* x, real* sums, whole N, whole C) {
    whole column = place();
    real sum = 0;
    for (whole i = blockIdx.y * 8 + threadIdx.y; i < N && column < C; i += gridDim.y * 8)
        sum += x[i * C + column];
    add_eight(sums + blockIdx.y * C, sum, column, C);
}

// dw = sum of dy h and db = sum of dy, over the rows of a slab; h as in layer_norm_forward
extern "C" __global__ void layer_norm_weights(
    const real* dy, const real* x, const real* means, const real* scales, real* dw, real* db,
    whole N, whole C) {
    whole column = place();
    real of_w = 0, of_b = 0;
    for (whole i = blockIdx.y * 8 + threadIdx.y; i < N && column < C; i += gridDim.y * 8) {
        real g = dy[i * C + column], first = x[i * C];
        real h = (x[i * C + column] - first - means[i]) * scales[i];
        of_w += g * h, of_b += g;
    }
    add_eight(dw + blockIdx.y * C, of_w, column, C);
    add_eight(db + blockIdx.y * C, of_b, column, C);
}

// ids (N,) in rising order, and the n at which each of them stood. The place of ids_n is the number
// of those that belong in front of it: the smaller ones, and equal ones with a smaller n. That is
// N^2 comparisons, but of numbers in shared memory, where the block puts 256 of them at a time.
extern "C" __global__ void sort_ids(const whole* ids, whole* sorted, whole* order, whole N) {
    __shared__ whole tile[256];
    whole n = place(), id = n < N ? ids[n] : 0, before = 0;
    for (whole start = 0; start < N; start += 256) {
        __syncthreads();
        if (start + threadIdx.x < N) tile[threadIdx.x] = ids[start + threadIdx.x];
        __syncthreads();
        for (whole i = 0; i < min(whole(256), N - start); i++)
            before += tile[i] < id || (tile[i] == id && start + i < n);
    }
    if (n < N) sorted[before] = id, order[before] = n;
}

// dw_id = sum of dy_n over the n with ids_n = id; ids and order (N,) as sort_ids gives them. A block
// per place in ids: that of an id's first place adds up all of its rows.
extern "C" __global__ void embedding_backward(
    const real* dy, const whole* ids, const whole* order, real* dw, whole N, whole C, whole V) {
    whole first = blockIdx.x, id = ids[first], column = (whole)blockIdx.y * 32 + threadIdx.x;
    if (id < 0 || id >= V || (first > 0 && ids[first - 1] == id)) return;
    real sum = 0;
    for (whole i = first + threadIdx.y; i < N && ids[i] == id && column < C; i += 8)
        sum += dy[order[i] * C + column];
    add_eight(dw + id * C, sum, column, C);
}

// The squares of g (n,), added up: a partial sum from each block; column_sum adds up the rest.
extern "C" __global__ void square_sum(const real* g, real* sums, whole n) {
    real sum = 0;
    for (whole i = place(); i < n; i += (whole)gridDim.x * blockDim.x) sum += g[i] * g[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}
