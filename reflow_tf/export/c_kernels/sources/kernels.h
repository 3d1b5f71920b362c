/* The kernels of an int8 network, bit for bit as TensorFlow Lite's reference kernels.
 *
 * Activations are NHWC with a batch of 1. C99, no heap, no floats, no library but memcpy and memset. Shifts of
 * negative numbers must be arithmetic, as they are with every compiler for Arm.
 */
#ifndef REFLOW_KERNELS_H
#define REFLOW_KERNELS_H

#include <stdint.h>

/* How an accumulator becomes int8.
 *
 * REFLOW_EXACT: TFLite's own words: a product, rounded, then a shift, rounded again; zero point; limits.
 * The two fast ones give the same numbers from one product and one shift, where the shift is to the right by 1 to 15,
 * accumulators have at most 24 bits and the limits are those of int8. TFLite rounds ties of the shift away from zero.
 * REFLOW_UP rounds them up, which is the same above the zero point, and a ReLU at -128 cuts off the rest;
 * REFLOW_AWAY corrects those below.
 */
enum { REFLOW_EXACT, REFLOW_UP, REFLOW_AWAY };

struct reflow_rescaling {
  const int32_t *multipliers; /* one for each channel: a real number between 1/2 and 1, times 2^31 */
  const int8_t *shifts;       /* REFLOW_EXACT: to the left, or negative; the others: to the right */
  int16_t zero_point, lowest, highest;
  int16_t rounding;
};

/* A convolution. Its weights are those of output channel 0, then of 1, ...; each channel row by row, as in OHWI.
 *
 * Dense: int8. Sparse: one int16 for each non-zero, weight * 256 + step, where `step` is how many positions it lies
 * after the last one (the first: after position 0); an int16 below 256 ends the channel.
 */
struct reflow_conv {
  const void *weights;
  const int64_t *starts; /* where the accumulators of two pixels begin, see conv_gather.c */
  struct reflow_rescaling rescaling;
  int16_t input_height, input_width, input_channels;
  int16_t output_height, output_width, output_channels;
  int16_t kernel_height, kernel_width, stride_height, stride_width, padding_top, padding_left;
  int16_t input_zero_point;
};

/* A depthwise convolution. Weights: those of channel 0, then of 1, ... */
struct reflow_depthwise {
  const int8_t *weights;
  const int32_t *biases; /* the input's zero point is in them */
  struct reflow_rescaling rescaling;
  int16_t input_height, input_width, output_height, output_width, channels, multiplier;
  int16_t kernel_height, kernel_width, stride_height, stride_width, padding_top, padding_left;
  int16_t input_zero_point;
};

/* A matrix times a vector; weights as in reflow_conv. */
struct reflow_dense {
  const void *weights;
  const int32_t *biases; /* the input's zero point is in them */
  struct reflow_rescaling rescaling;
  int32_t inputs, outputs;
};

/* A number and the rounded shift to the right that makes it small. */
struct reflow_factor {
  int32_t multiplier;
  int32_t shift;
};

/* The second input is the one with the greater scale: TFLite's factor for it is 1/2. */
struct reflow_add {
  struct reflow_factor first, output;
  int16_t first_zero_point, second_zero_point, zero_point, lowest, highest;
  int32_t size;
};

struct reflow_pool {
  int16_t input_height, input_width, output_height, output_width, channels;
  int16_t kernel_height, kernel_width, stride_height, stride_width, padding_top, padding_left;
  int16_t lowest, highest;
};

struct reflow_mean {
  int32_t multiplier, shift;
  int32_t pixels, channels;
  int16_t input_zero_point, zero_point;
};

struct reflow_relu {
  int32_t multiplier, shift;
  int32_t size;
  int16_t input_zero_point, zero_point, lowest, highest;
};

struct reflow_softmax {
  int32_t multiplier, shift;
  int32_t rows, classes, least_difference;
};

struct reflow_pad {
  int16_t input_height, input_width, channels, top, bottom, left, right;
  int16_t zero_point;
};

struct reflow_lookup {
  const int8_t *table; /* for -128, -127, ... */
  int32_t size;
};

/* One input of a concatenation: rows of `length` bytes, each to `start` in a row of `pitch`. */
struct reflow_concatenation {
  int32_t rows, start, length, pitch;
};

void reflow_conv_sparse(const struct reflow_conv *layer, const int8_t *input, int8_t *output, int32_t *scratch);
void reflow_conv_dense(const struct reflow_conv *layer, const int8_t *input, int8_t *output, int32_t *scratch);
void reflow_conv_exact(const struct reflow_conv *layer, const int8_t *input, int8_t *output);
void reflow_depthwise_3x3(const struct reflow_depthwise *layer, const int8_t *input, int8_t *output, int32_t *scratch);
void reflow_depthwise_exact(const struct reflow_depthwise *layer, const int8_t *input, int8_t *output);
void reflow_dense_sparse(const struct reflow_dense *layer, const int8_t *input, int8_t *output);
void reflow_dense_dense(const struct reflow_dense *layer, const int8_t *input, int8_t *output);
void reflow_dense_exact(const struct reflow_dense *layer, const int8_t *input, int8_t *output);
void reflow_add(const struct reflow_add *layer, const int8_t *first, const int8_t *second, int8_t *output);
void reflow_max_pool(const struct reflow_pool *layer, const int8_t *input, int8_t *output);
void reflow_average_pool(const struct reflow_pool *layer, const int8_t *input, int8_t *output);
void reflow_mean(const struct reflow_mean *layer, const int8_t *input, int8_t *output);
void reflow_relu(const struct reflow_relu *layer, const int8_t *input, int8_t *output);
void reflow_softmax(const struct reflow_softmax *layer, const int8_t *input, int8_t *output);
void reflow_pad(const struct reflow_pad *layer, const int8_t *input, int8_t *output);
void reflow_lookup(const struct reflow_lookup *layer, const int8_t *input, int8_t *output);
void reflow_concatenation(const struct reflow_concatenation *layer, const int8_t *input, int8_t *output);

#endif
