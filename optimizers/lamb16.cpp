// LAMB16's update of one tensor on a CPU, in two passes over it: `measure` computes the maxima and
// sums for the scales and the trust ratio, `advance` stores the new moments and moves the weights.
// lamb16.py explains the rule, float8.py the formats of the moments and their rounding.

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

using Weight = WEIGHT;
using Wide = std::conditional_t<std::is_same_v<Weight, double>, double, float>;

struct Numbers {
    // Factors of the old moments, and the smallest second moment.
    float first_kept, second_kept, least;
    // Factors of the gradient and of its square.
    float first_taken, second_taken;
    float eps, weight_decay;
};

struct Format {
    int tail, normal, bias;
    int32_t sign;

    constexpr int32_t stride() const { return static_cast<int32_t>(0.0901699437 * (1 << tail)) | 1; }
    int32_t turn(double phase) const { return static_cast<int32_t>(phase * (1 << tail)); }
};

constexpr Format e4m3{20, 8, 120, 0x80}, e5m2{21, 4, 112, 0};
constexpr int64_t period = 1 << 13, block = 1 << 12;

// Magnitudes have the order of their bits; NaN is the largest.
inline int32_t magnitude(float value) { return std::bit_cast<int32_t>(value) & 0x7fffffff; }

template <Format format>
inline float decode(uint8_t code) {
    constexpr float least = std::bit_cast<float>(format.bias << 23);
    const int32_t unsigned_code = code & ~format.sign;
    const float normal = std::bit_cast<float>((unsigned_code << format.tail) + (format.bias << 23));
    const float value = unsigned_code < format.normal ? (normal - least) * 2 : normal;
    return std::bit_cast<float>(std::bit_cast<int32_t>(value) | (code & format.sign) << 24);
}

template <Format format>
inline uint8_t encode(float value, int32_t place, int32_t turn) {
    constexpr float align = std::bit_cast<float>((127 - format.bias) << 23);
    const int32_t threshold = (place * format.stride() + turn) & ((1 << format.tail) - 1);
    const float aligned = value * align;
    return static_cast<uint8_t>((magnitude(aligned) + threshold) >> format.tail | (std::bit_cast<int32_t>(aligned) >> 24 & format.sign));
}

struct Moments {
    float first, second;
};

inline Moments take_in(uint8_t first, uint8_t second, float gradient, const Numbers& numbers) {
    return {decode<e4m3>(first) * numbers.first_kept + gradient * numbers.first_taken,
            decode<e5m2>(second) * numbers.second_kept + gradient * gradient * numbers.second_taken};
}

inline float direct(Moments moments, float weight, const Numbers& numbers) {
    return moments.first / (std::sqrt(std::max(moments.second, numbers.least)) + numbers.eps) + numbers.weight_decay * weight;
}

// NaN stays NaN.
inline float clipped_square(float value, float least) { return std::max(std::min(value * value, 1.0f), least); }

// Writes the largest |m|, the largest v, and the sums of the clipped squares of the weights and of
// the direction to `results`.
extern "C" void measure(const Weight* weights, const Weight* gradients, const uint8_t* first, const uint8_t* second, int64_t count,
                        const Numbers* shared_numbers, int threads, float* results) {
    const Numbers numbers = *shared_numbers;
    int32_t most_first = 0, most_second = 0;
    double weight_size = 0, direction_size = 0;
#pragma omp parallel for num_threads(threads) reduction(max : most_first, most_second) reduction(+ : weight_size, direction_size)
    for (int64_t start = 0; start < count; start += block) {
        const int64_t stop = std::min(start + block, count);
        int32_t block_first = 0, block_second = 0;
        float block_weight = 0, block_direction = 0;
#pragma omp simd reduction(max : block_first, block_second) reduction(+ : block_weight, block_direction)
        for (int64_t i = start; i < stop; ++i) {
            const float weight = weights[i];
            const Moments moments = take_in(first[i], second[i], gradients[i], numbers);
            block_first = std::max(block_first, magnitude(moments.first));
            block_second = std::max(block_second, magnitude(moments.second));
            block_weight += clipped_square(weight, numbers.eps);
            block_direction += clipped_square(direct(moments, weight, numbers), numbers.eps);
        }
        most_first = std::max(most_first, block_first);
        most_second = std::max(most_second, block_second);
        weight_size += block_weight;
        direction_size += block_direction;
    }
    results[0] = std::bit_cast<float>(most_first);
    results[1] = std::bit_cast<float>(most_second);
    results[2] = static_cast<float>(weight_size);
    results[3] = static_cast<float>(direction_size);
}

// Multiplies the moments by the inverses of their scales; the phases in [0, 1) shift the thresholds
// of their rounding. Writes two sums of squares of the second moments to `results`: before and
// after rounding.
extern "C" void advance(Weight* __restrict weights, const Weight* __restrict gradients, uint8_t* __restrict first,
                        uint8_t* __restrict second, int64_t count, const Numbers* shared_numbers, int threads,
                        float first_inverse, float second_inverse, float trust, double first_phase, double second_phase,
                        double lr, float* results) {
    const Numbers numbers = *shared_numbers;
    const int32_t first_turn = e4m3.turn(first_phase), second_turn = e5m2.turn(second_phase);
    const Wide rate = static_cast<Wide>(lr);
    double before = 0, after = 0;
#pragma omp parallel for num_threads(threads) reduction(+ : before, after)
    for (int64_t start = 0; start < count; start += block) {
        const int32_t length = static_cast<int32_t>(std::min(block, count - start)), offset = start % period;
        Weight* const own_weights = weights + start;
        const Weight* const own_gradients = gradients + start;
        uint8_t *const own_first = first + start, *const own_second = second + start;
        float block_before = 0, block_after = 0;
#pragma omp simd reduction(+ : block_before, block_after)
        for (int32_t i = 0; i < length; ++i) {
            const Wide weight = own_weights[i];
            const Moments moments = take_in(own_first[i], own_second[i], own_gradients[i], numbers);
            own_first[i] = encode<e4m3>(moments.first * first_inverse, offset + i, first_turn);
            const float scaled = moments.second * second_inverse;
            own_second[i] = encode<e5m2>(scaled, offset + i, second_turn);
            const float stored = decode<e5m2>(own_second[i]);
            block_before += scaled * scaled;
            block_after += stored * stored;
            own_weights[i] = weight - rate * (direct(moments, weight, numbers) * trust);
        }
        before += block_before;
        after += block_after;
    }
    results[0] = static_cast<float>(before);
    results[1] = static_cast<float>(after);
}
