/*
 * live_cpu: execute XRSTOR or FXRSTOR, XGETBV(1), and XSAVE, XSAVEOPT, XSAVEC or FXSAVE on this processor, a round at
 * a time, and say what came of it. live_cpu.py builds it, feeds it and compares.
 *
 *   stdin    one u64, the bytes of an image; then rounds: struct round, and the images base, source and target
 *   stdout   one u64, XCR0 (0: the kernel has not enabled XSAVE); then a round each: struct answer, and the target as it
 *            is afterwards
 *
 * All registers are loaded from `base` first, which must be loadable. `source` and `target` may hold anything. An
 * instruction that faults is skipped, and its trap number is in the answer.
 *
 * Between the instructions of a round nothing may use vector registers: build with -mgeneral-regs-only.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <ucontext.h>
#include <unistd.h>

enum { MAX_IMAGE = 1 << 16, ALIGN = 64 };
enum load { XRSTOR, FXRSTOR };
enum save { XSAVE, XSAVEOPT, XSAVEC, FXSAVE };

struct round {
	uint64_t load, load_rfbm, load_shift; /* the image lies that many bytes behind a multiple of 64 */
	uint64_t save, save_rfbm, save_shift;
};

struct answer {
	uint64_t load_trap, save_trap; /* trap number, or 0 */
	uint64_t xinuse;
};

static uint8_t base[MAX_IMAGE] __attribute__((aligned(ALIGN)));
static uint8_t source[MAX_IMAGE + ALIGN] __attribute__((aligned(ALIGN)));
static uint8_t target[MAX_IMAGE + ALIGN] __attribute__((aligned(ALIGN)));
static uint8_t init[MAX_IMAGE] __attribute__((aligned(ALIGN)));

/* Where to go on behind an instruction that faults, and what it raised. */
static volatile uint64_t resume, trap;

static void on_fault(int signal, siginfo_t *info, void *context)
{
	ucontext_t *user = context;

	(void)signal;
	(void)info;
	trap = (uint64_t)user->uc_mcontext.gregs[REG_TRAPNO];
	user->uc_mcontext.gregs[REG_RIP] = (greg_t)resume;
}

/* One instruction on the memory at `at`; its fault is the value. */
#define EXECUTE(name, insn)                                                                                            \
	static uint64_t name(uint8_t *at, uint64_t rfbm)                                                               \
	{                                                                                                              \
		uint64_t scratch;                                                                                      \
                                                                                                                       \
		trap = 0;                                                                                              \
		__asm__ volatile("lea 1f(%%rip), %0\n\tmov %0, %1\n\t" insn " (%2)\n1:"                                \
				 : "=&r"(scratch), "=m"(resume)                                                        \
				 : "r"(at), "a"((uint32_t)rfbm), "d"((uint32_t)(rfbm >> 32))                           \
				 : "memory");                                                                          \
		return trap;                                                                                           \
	}

EXECUTE(do_xrstor, "xrstor64")
EXECUTE(do_fxrstor, "fxrstor64")
EXECUTE(do_xsave, "xsave64")
EXECUTE(do_xsaveopt, "xsaveopt64")
EXECUTE(do_xsavec, "xsavec64")
EXECUTE(do_fxsave, "fxsave64")

/* XGETBV: XCR0 for index 0, XCR0 & XINUSE for 1; its fault is in `trap`. */
static uint64_t xgetbv(uint32_t index)
{
	uint32_t low = 0, high = 0;
	uint64_t scratch;

	trap = 0;
	__asm__ volatile("lea 1f(%%rip), %2\n\tmov %2, %3\n\txgetbv\n1:"
			 : "=a"(low), "=d"(high), "=&r"(scratch), "=m"(resume)
			 : "c"(index));
	return (uint64_t)high << 32 | low;
}

static uint64_t load(const struct round *round)
{
	uint8_t *at = source + round->load_shift;

	return round->load == XRSTOR ? do_xrstor(at, round->load_rfbm) : do_fxrstor(at, 0);
}

static uint64_t save(const struct round *round)
{
	uint8_t *at = target + round->save_shift;

	switch (round->save) {
	case XSAVE:
		return do_xsave(at, round->save_rfbm);
	case XSAVEOPT:
		return do_xsaveopt(at, round->save_rfbm);
	case XSAVEC:
		return do_xsavec(at, round->save_rfbm);
	default:
		return do_fxsave(at, 0);
	}
}

static void execute(const struct round *round, struct answer *answer)
{
	do_xrstor(base, ~0ull);
	answer->load_trap = load(round);
	answer->xinuse = xgetbv(1);
	if (trap)
		answer->xinuse = ~0ull; /* no such thing here */
	answer->save_trap = save(round);
	do_xrstor(init, ~0ull);
}

static int complain(const char *text)
{
	size_t length = 0;

	while (text[length])
		length++;
	(void)!write(2, text, length);
	return 2;
}

/* Read exactly `size` bytes: 1, or 0 at the end of input, or -1 if it ends too early. */
static int get(void *to, size_t size)
{
	size_t have = 0;

	while (have < size) {
		ssize_t n = read(0, (uint8_t *)to + have, size - have);

		if (n <= 0)
			return n == 0 && have == 0 ? 0 : -1;
		have += (size_t)n;
	}
	return 1;
}

static int put(const void *from, size_t size)
{
	while (size) {
		ssize_t n = write(1, from, size);

		if (n <= 0)
			return -1;
		from = (const uint8_t *)from + n;
		size -= (size_t)n;
	}
	return 1;
}

static int catch_faults(void)
{
	static const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE};
	struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};

	for (size_t i = 0; i < sizeof(signals) / sizeof(*signals); i++)
		if (sigaction(signals[i], &action, 0))
			return -1;
	return 0;
}

int main(void)
{
	struct round round;
	struct answer answer;
	uint64_t size, xcr0;
	int more;

	if (get(&size, sizeof(size)) != 1 || size < 576 || size > MAX_IMAGE)
		return complain("live_cpu: expected the bytes of an image, 576..65536, as a u64\n");
	if (catch_faults())
		return complain("live_cpu: cannot catch signals\n");
	xcr0 = xgetbv(0);
	if (put(&xcr0, sizeof(xcr0)) != 1)
		return complain("live_cpu: cannot write\n");
	init[0] = 0x7f, init[1] = 0x03, init[24] = 0x80, init[25] = 0x1f;
	while ((more = get(&round, sizeof(round))) == 1) {
		if (round.load > FXRSTOR || round.save > FXSAVE || round.load_shift >= ALIGN || round.save_shift >= ALIGN)
			return complain("live_cpu: a round with an unknown instruction or a shift of 64 and more\n");
		if (get(base, size) != 1 || get(source + round.load_shift, size) != 1 ||
		    get(target + round.save_shift, size) != 1)
			return complain("live_cpu: a round without its three images\n");
		execute(&round, &answer);
		if (put(&answer, sizeof(answer)) != 1 || put(target + round.save_shift, size) != 1)
			return complain("live_cpu: cannot write\n");
	}
	return more ? complain("live_cpu: half a round\n") : 0;
}
