// SGD-SaI's update of one tensor on a CPU, in one pass over it. sgd_sai.py explains the rule.

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

using Weight = WEIGHT;
using Wide = std::conditional_t<std::is_same_v<Weight, double>, double, float>;

constexpr int64_t block = 1 << 12;

struct Numbers {
    // `taken` is the share of the new gradient in the average, `kept` that of the old weights.
    double taken, kept, rate;
};

template <bool with_momentum>
void update_block(Weight* __restrict weights, const Weight* __restrict gradients, Weight* __restrict buffer, int64_t count,
                  const Numbers& numbers) {
    const Wide taken = numbers.taken, kept = numbers.kept, rate = numbers.rate;
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
        Wide direction = gradients[i];
        if constexpr (with_momentum) {
            const Wide average = buffer[i];
            buffer[i] = average + taken * (direction - average);
            direction = buffer[i];
        }
        weights[i] = kept * static_cast<Wide>(weights[i]) - rate * direction;
    }
}

// Without momentum, `buffer` is null.
extern "C" void update(Weight* weights, const Weight* gradients, Weight* buffer, int64_t count, const Numbers* numbers, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t start = 0; start < count; start += block) {
        const int64_t length = std::min(block, count - start);
        if (buffer)
            update_block<true>(weights + start, gradients + start, buffer + start, length, *numbers);
        else
            update_block<false>(weights + start, gradients + start, nullptr, length, *numbers);
    }
}
