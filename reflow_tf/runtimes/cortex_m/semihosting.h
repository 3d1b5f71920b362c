/* Files, words and the end of the program, by way of the emulator: Arm's semihosting, version 2.0
 * (https://github.com/ARM-software/abi-aa/blob/main/semihosting/semihosting.rst).
 */
#ifndef SEMIHOSTING_H
#define SEMIHOSTING_H

#include <stddef.h>
#include <stdint.h>

enum { SYS_OPEN = 0x01, SYS_WRITE0 = 0x04, SYS_WRITE = 0x05, SYS_READ = 0x06, SYS_EXIT_EXTENDED = 0x20 };
enum { READ_BINARY = 1, WRITE_BINARY = 5 };

static inline intptr_t semihosting(intptr_t operation, const void *arguments) {
  register intptr_t r0 __asm__("r0") = operation;
  register const void *r1 __asm__("r1") = arguments;
  __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
  return r0;
}

/* A handle, or -1. */
static inline intptr_t open_file(const char *name, size_t length, intptr_t mode) {
  const uintptr_t arguments[] = {(uintptr_t)name, (uintptr_t)mode, length};
  return semihosting(SYS_OPEN, arguments);
}

/* Both: the number of bytes that were NOT moved. */
static inline size_t read_file(intptr_t file, void *bytes, size_t size) {
  const uintptr_t arguments[] = {(uintptr_t)file, (uintptr_t)bytes, size};
  return (size_t)semihosting(SYS_READ, arguments);
}

static inline size_t write_file(intptr_t file, const void *bytes, size_t size) {
  const uintptr_t arguments[] = {(uintptr_t)file, (uintptr_t)bytes, size};
  return (size_t)semihosting(SYS_WRITE, arguments);
}

static inline void say(const char *text) { semihosting(SYS_WRITE0, text); }

static inline _Noreturn void leave(uintptr_t exit_code) {
  enum { APPLICATION_EXIT = 0x20026 };
  const uintptr_t arguments[] = {APPLICATION_EXIT, exit_code};
  semihosting(SYS_EXIT_EXTENDED, arguments);
  for (;;) {
  }
}

#endif
