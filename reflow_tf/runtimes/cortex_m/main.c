/* Runs the model on every sample of inputs.bin, one after the other, and writes the outputs to outputs.bin. */
#include <stddef.h>
#include <stdint.h>

#include "model.h"
#include "semihosting.h"

void reflow_invoke(const int8_t *input, int8_t *output);

_Static_assert(REFLOW_INPUT_BYTES == EXPECTED_INPUT_BYTES, "REFLOW_INPUT_BYTES differs from the shape of the input");
_Static_assert(REFLOW_OUTPUT_BYTES == EXPECTED_OUTPUT_BYTES, "REFLOW_OUTPUT_BYTES differs from the output's shape");

/* 16 bytes, as vector loads may want them. */
static _Alignas(16) int8_t input[REFLOW_INPUT_BYTES], output[REFLOW_OUTPUT_BYTES];

/* Empty, and never inlined: the emulator's plugin counts from one to the other, what happens in `count_one` left out. */
__attribute__((noinline)) void count_begin(void) { __asm__ volatile(""); }
__attribute__((noinline)) void count_end(void) { __asm__ volatile(""); }

__attribute__((noinline)) void count_one(void) {
  count_begin();
  reflow_invoke(input, output);
  count_end();
}

/* How far the stack has reached: it grows down over words that were painted first. */
extern uint32_t stack_bottom[], stack_top[];
enum { PAINT = 0x5EED5EED };

static uint32_t *here(void) {
  uint32_t *pointer;
  __asm__ volatile("mov %0, sp" : "=r"(pointer));
  return pointer;
}

__attribute__((noinline)) static void paint_stack(void) {
  for (uint32_t *word = stack_bottom, *end = here() - 16; word < end; ++word) *(volatile uint32_t *)word = PAINT;
}

__attribute__((noinline)) static uint32_t used_stack(void) {
  const uint32_t *word = stack_bottom;
  while (*word == PAINT) ++word;
  return (uint32_t)((const uint8_t *)here() - (const uint8_t *)word);
}

int main(void) {
  const intptr_t inputs = open_file("inputs.bin", 10, READ_BINARY), outputs = open_file("outputs.bin", 11, WRITE_BINARY);
  const intptr_t stack = open_file("stack.bin", 9, WRITE_BINARY);
  if (inputs < 0 || outputs < 0 || stack < 0) {
    say("the emulator must open inputs.bin, outputs.bin and stack.bin\n");
    return 1;
  }
  paint_stack();
  while (!read_file(inputs, input, sizeof input)) {
    count_one();
    if (write_file(outputs, output, sizeof output)) {
      say("outputs.bin cannot be written\n");
      return 1;
    }
  }
  const uint32_t used = used_stack();
  return write_file(stack, &used, sizeof used) ? 1 : 0;
}
