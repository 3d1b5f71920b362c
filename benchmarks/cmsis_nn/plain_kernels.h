/* What CMSIS-NN 4.0.0 as `bakenn` vendors it lacks, and MEAN, which no CMSIS-NN has: TFLite's reference in plain C. */
#ifndef PLAIN_KERNELS_H
#define PLAIN_KERNELS_H

#include <stdint.h>

void plain_add(const int8_t *a, const int8_t *b, int32_t a_offset, int32_t a_multiplier, int32_t a_shift,
               int32_t b_offset, int32_t b_multiplier, int32_t b_shift, int32_t left_shift, int8_t *output,
               int32_t offset, int32_t multiplier, int32_t shift, int32_t least, int32_t largest, int32_t size);
void plain_mean(const int8_t *input, int32_t pixels, int32_t channels, int32_t input_zero_point, int32_t multiplier,
                int32_t shift, int32_t output_zero_point, int8_t *output);
void plain_softmax(const int8_t *input, int32_t rows, int32_t row_size, int32_t multiplier, int32_t shift,
                   int32_t least_difference, int8_t *output);

#endif
