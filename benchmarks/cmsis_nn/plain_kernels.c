/* TensorFlow Lite's reference arithmetic of ADD, MEAN and SOFTMAX, for int8: see gemmlowp's fixedpoint.h. */
#include "plain_kernels.h"

static int32_t clamp(int32_t value, int32_t least, int32_t largest) {
  return value < least ? least : value > largest ? largest : value;
}

/* Rounded a * b / 2^31; the one product that overflows does not come up with multipliers of at least 0. */
static int32_t multiply_high(int32_t a, int32_t b) { return (int32_t)(((int64_t)a * b + (1 << 30)) >> 31); }

/* Rounded, halves away from zero. */
static int32_t divide_by_power(int32_t value, int32_t exponent) {
  const int32_t mask = (int32_t)((1u << exponent) - 1), remainder = value & mask;
  return (value >> exponent) + (remainder > (mask >> 1) + (value < 0));
}

static int32_t requantize(int32_t value, int32_t multiplier, int32_t shift) {
  const int32_t left = shift > 0 ? shift : 0, right = shift > 0 ? 0 : -shift;
  return divide_by_power(multiply_high(value * (1 << left), multiplier), right);
}

void plain_add(const int8_t *a, const int8_t *b, int32_t a_offset, int32_t a_multiplier, int32_t a_shift,
               int32_t b_offset, int32_t b_multiplier, int32_t b_shift, int32_t left_shift, int8_t *output,
               int32_t offset, int32_t multiplier, int32_t shift, int32_t least, int32_t largest, int32_t size) {
  for (int32_t i = 0; i < size; ++i) {
    const int32_t left = requantize((a[i] + a_offset) * (1 << left_shift), a_multiplier, a_shift);
    const int32_t right = requantize((b[i] + b_offset) * (1 << left_shift), b_multiplier, b_shift);
    output[i] = (int8_t)clamp(requantize(left + right, multiplier, shift) + offset, least, largest);
  }
}

void plain_mean(const int8_t *input, int32_t pixels, int32_t channels, int32_t input_zero_point, int32_t multiplier,
                int32_t shift, int32_t output_zero_point, int8_t *output) {
  for (int32_t channel = 0; channel < channels; ++channel) {
    int32_t sum = 0;
    for (int32_t pixel = 0; pixel < pixels; ++pixel) sum += input[pixel * channels + channel];
    sum = requantize(sum - input_zero_point * pixels, multiplier, shift) + output_zero_point;
    output[channel] = (int8_t)clamp(sum, -128, 127);
  }
}

/* Of x <= 0 with 5 integer bits, with none: a Taylor series around -1/8, times exp(-2^k) for each bit k of the rest. */
static int32_t exp_of_negative(int32_t x) {
  static const int32_t powers[] = {1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242};
  const int32_t quarter = 1 << 24;
  const int32_t in_quarter = (x & (quarter - 1)) - quarter, rest = in_quarter - x;
  const int32_t y = in_quarter * (1 << 5) + (1 << 28), y2 = multiply_high(y, y);
  const int32_t y3 = multiply_high(y2, y), y4 = multiply_high(y2, y2);
  const int32_t tail = divide_by_power(multiply_high(divide_by_power(y4, 2) + y3, 715827883) + y2, 1);
  int32_t result = 1895147668 + multiply_high(1895147668, y + tail);
  for (int bit = 0; bit < 7; ++bit) {
    if (rest & (quarter << bit)) result = multiply_high(result, powers[bit]);
  }
  return x ? result : INT32_MAX;
}

/* 1 / (1 + x) for x in [0, 1]: three of Newton's steps for the reciprocal of half the denominator. */
static int32_t reciprocal_of_one_plus(int32_t x) {
  const int64_t sum = (int64_t)x + INT32_MAX;
  const int32_t half = (int32_t)((sum + 1) / 2);
  int32_t estimate = 1515870810 + multiply_high(half, -1010580540);
  for (int step = 0; step < 3; ++step) {
    estimate += multiply_high(estimate, (1 << 29) - multiply_high(half, estimate)) * 4;
  }
  return estimate > INT32_MAX / 2 ? INT32_MAX : estimate * 2;
}

void plain_softmax(const int8_t *input, int32_t rows, int32_t row_size, int32_t multiplier, int32_t shift,
                   int32_t least_difference, int8_t *output) {
  for (; rows; --rows, input += row_size, output += row_size) {
    int32_t largest = -128, sum = 0;
    for (int32_t i = 0; i < row_size; ++i) largest = input[i] > largest ? input[i] : largest;
    for (int32_t i = 0; i < row_size; ++i) {
      const int32_t difference = input[i] - largest;
      if (difference < least_difference) continue;
      sum += divide_by_power(exp_of_negative(multiply_high(difference * (1 << shift), multiplier)), 12);
    }
    const int32_t headroom = __builtin_clz((uint32_t)sum);
    const int32_t scale = reciprocal_of_one_plus((int32_t)(((uint32_t)sum << headroom) - (1u << 31)));
    for (int32_t i = 0; i < row_size; ++i) {
      const int32_t difference = input[i] - largest;
      output[i] = -128;
      if (difference < least_difference) continue;
      const int32_t power = exp_of_negative(multiply_high(difference * (1 << shift), multiplier));
      const int32_t share = divide_by_power(multiply_high(scale, power), 12 - headroom + 31 - 8);
      output[i] = (int8_t)clamp(share - 128, -128, 127);
    }
  }
}
