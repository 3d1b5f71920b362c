/* Softmax in fixed point, as gemmlowp's (github.com/google/gemmlowp, fixedpoint/fixedpoint.h). The output may be the
 * input. A number written Qn has n bits before the point and 31 - n behind it.
 */
#include "rescaling.h"

static int32_t saturate(int64_t x) {
  return x > INT32_MAX ? INT32_MAX : x < INT32_MIN ? INT32_MIN : (int32_t)x;
}

/* e^x for -1/4 <= x < 0: Taylor's series about -1/8. Q0. */
static int32_t exponential_near_zero(int32_t x) {
  const int32_t t = x + (1 << 28); /* + 1/8 */
  const int32_t square = reflow_multiply_high(t, t);
  const int32_t cube = reflow_multiply_high(square, t);
  const int32_t fourth = reflow_divide_by_power(reflow_multiply_high(square, square), 2);
  const int32_t third = 715827883, base = 1895147668; /* 1/3 and e^(-1/8) */
  const int32_t higher = reflow_divide_by_power(reflow_multiply_high(fourth + cube, third) + square, 1);
  return base + reflow_multiply_high(base, t + higher);
}

/* e^x for x <= 0. Q5 to Q0. */
static int32_t exponential(int32_t x) {
  /* e^(-2^i) for i = -2, -1, ... */
  static const int32_t powers[] = {1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242};
  const int32_t quarter = 1 << 24;
  const int32_t rest = (x & (quarter - 1)) - quarter;
  const int32_t steps = rest - x;
  int32_t result = exponential_near_zero(rest * 32);
  int32_t bit;
  for (bit = 0; bit < 7; ++bit)
    if (steps & ((int32_t)1 << (24 + bit))) result = reflow_multiply_high(result, powers[bit]);
  return x == 0 ? INT32_MAX : result;
}

/* 1 / (1 + x) for 0 <= x < 1, by three steps of Newton's. Q0. */
static int32_t reciprocal(int32_t x) {
  const int32_t half = (int32_t)(((int64_t)x + INT32_MAX + 1) / 2); /* (1 + x) / 2 */
  int32_t result = 1515870810 + reflow_multiply_high(half, -1010580540); /* 48/17 - 32/17 half; Q2 */
  int32_t step;
  for (step = 0; step < 3; ++step) {
    const int32_t error = (1 << 29) - reflow_multiply_high(half, result);
    result += saturate((int64_t)reflow_multiply_high(result, error) * 4);
  }
  return saturate((int64_t)result * 2);
}

static int32_t count_leading_zeros(uint32_t x) {
  int32_t count = 0;
  while (count < 32 && !(x >> 31)) {
    x <<= 1;
    ++count;
  }
  return count;
}

/* Of the value minus the largest one; INT32_MIN where it is too little to count. */
static int32_t exponential_of(const struct reflow_softmax *layer, int32_t difference) {
  if (difference < layer->least_difference) return INT32_MIN;
  return exponential(reflow_multiply_high(difference * ((int32_t)1 << layer->shift), layer->multiplier));
}

static void normalize(const struct reflow_softmax *layer, const int8_t *input, int8_t *output) {
  int32_t largest = -128, sum = 0, index, zeros, scale; /* the sum is Q12 */
  for (index = 0; index < layer->classes; ++index) largest = input[index] > largest ? input[index] : largest;
  for (index = 0; index < layer->classes; ++index) {
    const int32_t power = exponential_of(layer, input[index] - largest);
    if (power != INT32_MIN) sum += reflow_divide_by_power(power, 12);
  }
  zeros = count_leading_zeros((uint32_t)sum);
  scale = reciprocal((int32_t)(((uint32_t)sum << zeros) - ((uint32_t)1 << 31)));
  for (index = 0; index < layer->classes; ++index) {
    const int32_t power = exponential_of(layer, input[index] - largest);
    int32_t value = -128;
    if (power != INT32_MIN)
      value += reflow_divide_by_power(reflow_multiply_high(scale, power), 12 - zeros + 31 - 8);
    output[index] = (int8_t)reflow_clamp(value, -128, 127);
  }
}

void reflow_softmax(const struct reflow_softmax *layer, const int8_t *input, int8_t *output) {
  int32_t row;
  for (row = 0; row < layer->rows; ++row) normalize(layer, input + row * layer->classes, output + row * layer->classes);
}
