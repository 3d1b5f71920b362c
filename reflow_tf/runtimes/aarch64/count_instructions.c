/* A QEMU TCG plugin that says how many instructions the guest has executed, at each call of getpgid().
 *
 * With options cache=BYTES:WAYS, the nearest cache first, it also says which blocks of code ran how often between two
 * of these calls, and how many 64-byte lines each cache would have had to fetch: in pieces, so that a reader can set
 * computing against fetching. The caches start empty at the first call, and throw out what was used longest ago.
 *
 *     block NUMBER ADDRESS CODE       once, before it is first named; the code as words in hexadecimal
 *     ran NUMBER TIMES                since the last piece
 *     fetched LINES...                into each cache, since the last piece; ends a piece
 *     EXECUTED                        at each call, in all; the only lines without options
 *
 * Debian 12 ships no qemu-plugin.h, so the few declarations are here, as QEMU 7.2's include/qemu/qemu-plugin.h has them
 * (https://www.qemu.org/docs/master/devel/tcg-plugins.html). Counters are added to inline by every translated block
 * that runs; blocks end at branches and system calls, so they are exact at a system call of a guest with one thread.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

typedef uint64_t qemu_plugin_id_t;
typedef uint32_t qemu_plugin_meminfo_t; /* its lowest four bits: log2 of the bytes accessed */
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };
enum qemu_plugin_cb_flags { QEMU_PLUGIN_CB_NO_REGS };
enum qemu_plugin_mem_rw { QEMU_PLUGIN_MEM_RW = 3 };

typedef void (*translated)(qemu_plugin_id_t, struct qemu_plugin_tb *);
typedef void (*called)(qemu_plugin_id_t, unsigned int vcpu, int64_t number, uint64_t, uint64_t, uint64_t, uint64_t,
                       uint64_t, uint64_t, uint64_t, uint64_t);
typedef void (*accessed)(unsigned int vcpu, qemu_plugin_meminfo_t, uint64_t address, void *);

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, translated);
void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t, called);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, enum qemu_plugin_op, void *, uint64_t);
void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *, accessed, enum qemu_plugin_cb_flags,
                                      enum qemu_plugin_mem_rw, void *);
void qemu_plugin_outs(const char *);

EXPORT int qemu_plugin_version = 1;

enum { GETPGID = 155 }; /* on 64-bit ARM: include/uapi/asm-generic/unistd.h */
enum { LINE_BYTES = 64, MOST_CACHES = 3, ACCESSES_PER_PIECE = 1 << 16 };

typedef struct block {
  struct block *next;
  uint64_t address, executed, told, number;
  size_t length;
  uint32_t code[];
} block;

typedef struct {
  size_t sets, ways;
  uint64_t *lines; /* of each set, what was used last first; 0: none */
  uint64_t fetched;
} cache;

static uint64_t executed, accesses;
static block *blocks;
static uint64_t named; /* blocks that have a number */
static cache caches[MOST_CACHES];
static int levels, is_watching;

static void say(const char *format, ...) {
  char line[64];
  va_list values;
  va_start(values, format);
  vsnprintf(line, sizeof line, format, values);
  va_end(values);
  qemu_plugin_outs(line);
}

static void name(block *one) {
  one->number = ++named;
  say("block %" PRIu64 " %" PRIx64 " ", one->number, one->address);
  for (size_t i = 0; i < one->length; ++i) say("%08" PRIx32, one->code[i]);
  say("\n");
}

static void end_piece(void) {
  for (block *one = blocks; one; one = one->next) {
    if (one->executed == one->told) continue;
    if (!one->number) name(one);
    say("ran %" PRIu64 " %" PRIu64 "\n", one->number, one->executed - one->told);
    one->told = one->executed;
  }
  say("fetched");
  for (int level = 0; level < levels; ++level) {
    say(" %" PRIu64, caches[level].fetched);
    caches[level].fetched = 0;
  }
  say("\n");
}

/* Whether the line is there; it is afterwards. */
static int look_up(cache *level, uint64_t line) {
  uint64_t *set = level->lines + (line % level->sets) * level->ways;
  size_t place = 0;
  while (place < level->ways && set[place] != line) ++place;
  int found = place < level->ways;
  memmove(set + 1, set, (found ? place : level->ways - 1) * sizeof *set);
  set[0] = line;
  level->fetched += !found;
  return found;
}

static void access_memory(unsigned int vcpu, qemu_plugin_meminfo_t info, uint64_t address, void *data) {
  (void)vcpu, (void)data;
  if (!is_watching) return;
  if (++accesses % ACCESSES_PER_PIECE == 0) end_piece();
  uint64_t last = (address + (1u << (info & 15)) - 1) / LINE_BYTES;
  for (uint64_t line = address / LINE_BYTES; line <= last; ++line)
    for (int level = 0; level < levels && !look_up(&caches[level], line); ++level) continue;
}

static void watch(struct qemu_plugin_tb *translation, size_t length) {
  block *one = calloc(1, sizeof *one + length * sizeof *one->code);
  if (!one) abort();
  one->address = qemu_plugin_tb_vaddr(translation);
  one->length = length;
  one->next = blocks;
  blocks = one;
  for (size_t i = 0; i < length; ++i) {
    struct qemu_plugin_insn *instruction = qemu_plugin_tb_get_insn(translation, i);
    memcpy(&one->code[i], qemu_plugin_insn_data(instruction), sizeof *one->code);
    qemu_plugin_register_vcpu_mem_cb(instruction, access_memory, QEMU_PLUGIN_CB_NO_REGS, QEMU_PLUGIN_MEM_RW, NULL);
  }
  qemu_plugin_register_vcpu_tb_exec_inline(translation, QEMU_PLUGIN_INLINE_ADD_U64, &one->executed, 1);
}

static void count(qemu_plugin_id_t id, struct qemu_plugin_tb *translation) {
  (void)id;
  size_t length = qemu_plugin_tb_n_insns(translation);
  qemu_plugin_register_vcpu_tb_exec_inline(translation, QEMU_PLUGIN_INLINE_ADD_U64, &executed, length);
  if (levels) watch(translation, length);
}

static void report(qemu_plugin_id_t id, unsigned int vcpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3,
                   uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8) {
  (void)id, (void)vcpu, (void)a1, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
  if (number != GETPGID) return;
  if (levels) end_piece();
  is_watching = 1;
  say("%" PRIu64 "\n", executed);
}

static int add_cache(const char *option) {
  size_t bytes, ways;
  if (levels == MOST_CACHES || sscanf(option, "cache=%zu:%zu", &bytes, &ways) != 2) return -1;
  cache *level = &caches[levels++];
  level->ways = ways;
  level->sets = bytes / LINE_BYTES / ways;
  level->lines = calloc(level->sets * ways, sizeof *level->lines);
  return level->lines ? 0 : -1;
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv) {
  (void)info;
  for (int i = 0; i < argc; ++i) {
    if (add_cache(argv[i])) {
      fprintf(stderr, "count_instructions: not understood: %s\n", argv[i]);
      return 1;
    }
  }
  qemu_plugin_register_vcpu_tb_trans_cb(id, count);
  qemu_plugin_register_vcpu_syscall_cb(id, report);
  return 0;
}
