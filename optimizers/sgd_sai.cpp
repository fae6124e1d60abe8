// SGD-SaI's update of one tensor on a CPU, in one pass over it. sgd_sai.py explains the rule.

#include <cstdint>
#include <type_traits>

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

using Weight = WEIGHT;
using Wide = std::conditional_t<std::is_same_v<Weight, double>, double, float>;

struct Numbers {
    // Factors of the gradient in its average, of the old weight, and of the average in the step.
    double taken, kept, rate;
};

template <bool with_momentum>
void update_all(Weight* __restrict weights, const Weight* __restrict gradients, Weight* __restrict buffer, int64_t count,
                const Numbers& numbers, int threads) {
    const Wide taken = numbers.taken, kept = numbers.kept, rate = numbers.rate;
#pragma omp parallel for simd num_threads(threads) schedule(static)
    for (int64_t i = 0; i < count; ++i) {
        Wide direction = gradients[i];
        if constexpr (with_momentum) {
            const Wide average = buffer[i];
            buffer[i] = average + taken * (direction - average);
            direction = buffer[i];
        }
        weights[i] = static_cast<Wide>(weights[i]) * kept - rate * direction;
    }
}

// Without momentum, `buffer` is null.
extern "C" void update(Weight* weights, const Weight* gradients, Weight* buffer, int64_t count, const Numbers* numbers, int threads) {
    if (buffer)
        update_all<true>(weights, gradients, buffer, count, *numbers, threads);
    else
        update_all<false>(weights, gradients, buffer, count, *numbers, threads);
}
