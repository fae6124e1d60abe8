// SM3's update of one tensor on a CPU, in one pass over it. sm3.py explains the rule.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <type_traits>
#include <vector>

#include <omp.h>

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

using Weight = WEIGHT;
using Wide = std::conditional_t<std::is_same_v<Weight, double>, double, float>;

constexpr int64_t block = 1 << 12;

struct Numbers {
    // `kept` multiplies the old accumulators, `taken` the new squares.
    double lr, momentum, kept, taken, eps;
};

struct Row {
    Weight* weights;
    const Weight* gradients;
    Weight* buffer;
    const Wide* old;
    Wide* fresh;
    int64_t count;
};

// Updates a part of a row and returns its largest square. `least` is the smallest accumulator of
// the other axes.
template <bool with_momentum>
Wide update_row(Row row, Wide least, const Numbers& numbers) {
    const Wide lr = numbers.lr, fraction = 1 - numbers.momentum;
    const Wide kept = numbers.kept, taken = numbers.taken, eps = numbers.eps;
    Weight* __restrict const weights = row.weights;
    const Weight* __restrict const gradients = row.gradients;
    Weight* __restrict const buffer = row.buffer;
    const Wide* __restrict const old = row.old;
    Wide* __restrict const fresh = row.fresh;
    Wide most = 0;
#pragma omp simd reduction(max : most)
    for (int64_t j = 0; j < row.count; ++j) {
        const Wide gradient = gradients[j];
        const Wide square = std::min(least, old[j]) * kept + gradient * gradient * taken;
        // NaN never wins the maximum.
        fresh[j] = fresh[j] < square ? square : fresh[j];
        most = most < square ? square : most;
        Wide direction = gradient / std::sqrt(square + eps);
        if constexpr (with_momentum) {
            const Wide average = buffer[j];
            const Wide rounded = static_cast<Weight>(direction);
            buffer[j] = average + fraction * (rounded - average);
            direction = buffer[j];
        }
        weights[j] = static_cast<Wide>(weights[j]) - lr * direction;
    }
    return most;
}

// Reads the accumulators of the axes and replaces them at the end. Without momentum, `buffer` is
// null.
extern "C" void update(Weight* weights, const Weight* gradients, Weight* buffer, Wide* const* accumulators, const int64_t* sizes,
                       int64_t axes, const Numbers* numbers, int threads) {
    const int64_t leading = axes - 1, columns = sizes[leading];
    int64_t rows = 1;
    for (int64_t axis = 0; axis < leading; ++axis) rows *= sizes[axis];
#pragma omp parallel num_threads(threads)
    {
        const int64_t parts = omp_get_num_threads(), part = omp_get_thread_num();
        // With fewer rows than threads, each thread takes some columns of every row, block by block.
        const bool by_rows = rows >= parts;
        const int64_t first = by_rows ? rows * part / parts : 0, last = by_rows ? rows * (part + 1) / parts : rows;
        const int64_t start = by_rows ? 0 : columns * part / parts, stop = by_rows ? columns : columns * (part + 1) / parts;
        const int64_t width = by_rows ? columns : std::min(stop - start, block);
        std::vector<std::vector<Wide>> fresh(axes);
        std::vector<int64_t> index(axes);
        for (int64_t axis = leading - 1, rest = first; axis >= 0; --axis) {
            fresh[axis].resize(sizes[axis]);
            index[axis] = rest % sizes[axis];
            rest /= sizes[axis];
        }
        fresh[leading].resize(width);
        for (int64_t from = start; from < stop; from += width) {
            const int64_t count = std::min(width, stop - from);
            for (int64_t row = first; row < last; ++row) {
                Wide least = std::numeric_limits<Wide>::infinity();
                for (int64_t axis = 0; axis < leading; ++axis) least = std::min(least, accumulators[axis][index[axis]]);
                const int64_t offset = row * columns + from;
                const Row chosen{weights + offset,
                                 gradients + offset,
                                 buffer ? buffer + offset : nullptr,
                                 accumulators[leading] + from,
                                 fresh[leading].data(),
                                 count};
                const Wide most = buffer ? update_row<true>(chosen, least, *numbers) : update_row<false>(chosen, least, *numbers);
                for (int64_t axis = 0; axis < leading; ++axis) fresh[axis][index[axis]] = std::max(fresh[axis][index[axis]], most);
                for (int64_t axis = leading - 1; axis >= 0 && ++index[axis] == sizes[axis]; --axis) index[axis] = 0;
            }
            if (!by_rows) {
                // No other thread reads these columns.
                std::copy_n(fresh[leading].begin(), count, accumulators[leading] + from);
                std::ranges::fill(fresh[leading], Wide{0});
            }
        }
        const int64_t shared = by_rows ? axes : leading;
#pragma omp barrier
#pragma omp single
        for (int64_t axis = 0; axis < shared; ++axis) std::fill_n(accumulators[axis], sizes[axis], Wide{0});
#pragma omp critical
        for (int64_t axis = 0; axis < shared; ++axis)
            std::ranges::transform(fresh[axis], std::span(accumulators[axis], sizes[axis]), accumulators[axis], std::ranges::max);
    }
}
