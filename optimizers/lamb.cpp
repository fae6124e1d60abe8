// LAMB's update of one tensor on a CPU. A first pass updates the moments and sums the squares of
// the weights and of the direction; a second moves the weights. lamb.py explains the rule.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

using Weight = WEIGHT;
using Wide = std::conditional_t<std::is_same_v<Weight, double>, double, float>;

constexpr int64_t block = 1 << 12;

struct Numbers {
    double lr, eps, weight_decay;
    // Shares of the new gradient and of its square in the moments.
    double first_taken, second_taken;
    // The bias corrections: the divisors of the first moment and of the root of the second.
    double first_divisor, root_divisor;
    double max_weight_norm, trust_clip;
};

// The numbers in the type in which a tensor is computed. `eps` and `root_factor` have both divisors.
struct Factors {
    Wide eps, weight_decay, first_taken, second_taken, second_kept, root_factor;

    explicit Factors(const Numbers& numbers)
        : eps(numbers.eps * numbers.first_divisor),
          weight_decay(numbers.weight_decay),
          first_taken(numbers.first_taken),
          second_taken(numbers.second_taken),
          second_kept(1 - numbers.second_taken),
          root_factor(numbers.first_divisor / numbers.root_divisor) {}
};

inline Wide direct(Wide first, Wide second, Wide weight, const Factors& factors) {
    return first / (std::sqrt(second) * factors.root_factor + factors.eps) + factors.weight_decay * weight;
}

struct Squares {
    Wide weights, directions;
};

inline Squares update_moments(const Weight* __restrict weights, const Weight* __restrict gradients, Wide* __restrict first,
                              Wide* __restrict second, int64_t count, const Factors& factors) {
    Wide weight_squares = 0, direction_squares = 0;
#pragma omp simd reduction(+ : weight_squares, direction_squares)
    for (int64_t i = 0; i < count; ++i) {
        const Wide weight = weights[i], gradient = gradients[i];
        const Wide mean = first[i] + factors.first_taken * (gradient - first[i]);
        const Wide square = second[i] * factors.second_kept + gradient * gradient * factors.second_taken;
        first[i] = mean;
        second[i] = square;
        const Wide direction = direct(mean, square, weight, factors);
        weight_squares += weight * weight;
        direction_squares += direction * direction;
    }
    return {weight_squares, direction_squares};
}

inline void move_weights(Weight* __restrict weights, const Wide* __restrict first, const Wide* __restrict second, int64_t count,
                         Wide rate, const Factors& factors) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
        const Wide weight = weights[i];
        weights[i] = weight - rate * direct(first[i], second[i], weight, factors);
    }
}

// NaN stays NaN.
inline double trust(double weight_squares, double direction_squares, const Numbers& numbers) {
    const double weight_norm = std::min(std::sqrt(weight_squares), numbers.max_weight_norm);
    const double direction_norm = std::sqrt(direction_squares);
    return std::min(weight_norm != 0 && direction_norm != 0 ? weight_norm / direction_norm : 1.0, numbers.trust_clip);
}

// `adapts` is 0 for a step without the trust ratio, which needs one pass only.
extern "C" void update(Weight* weights, const Weight* gradients, Wide* first, Wide* second, int64_t count, const Numbers* numbers,
                       int adapts, int threads) {
    const Factors factors(*numbers);
    const Wide lr = numbers->lr;
    double weight_squares = 0, direction_squares = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(+ : weight_squares, direction_squares)
    for (int64_t start = 0; start < count; start += block) {
        const int64_t length = std::min(block, count - start);
        const Squares squares = update_moments(weights + start, gradients + start, first + start, second + start, length, factors);
        weight_squares += squares.weights;
        direction_squares += squares.directions;
        if (!adapts) move_weights(weights + start, first + start, second + start, length, lr, factors);
    }
    if (!adapts) return;
    const Wide rate = numbers->lr * trust(weight_squares, direction_squares, *numbers);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t start = 0; start < count; start += block) {
        move_weights(weights + start, first + start, second + start, std::min(block, count - start), rate, factors);
    }
}
