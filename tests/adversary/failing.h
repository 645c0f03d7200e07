/*
 * Injected failures: while armed, the n-th large allocation, file operation or thread start of this
 * process fails, once.
 *
 * The program's own malloc and its relatives replace the C library's for everything that the
 * program links. File operations are intercepted in the kernel, by a seccomp filter that turns each
 * into a signal, so that operations which bypass the C library count too. Threads that started
 * before failing_begin are not watched. For Linux with glibc.
 */
#ifndef FAILING_H
#define FAILING_H

#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

/* Separate kinds are memory that MLX allocates for itself (on a CPU it does not check the result),
 * and allocations known to be fatal: see failing_known. */
enum failing_kind {
    FAILING_MEMORY,
    FAILING_MLX,
    FAILING_KNOWN,
    FAILING_FILES,
    FAILING_THREADS,
    FAILING_KINDS
};

static const char *const FAILING_NAMES[] = {
    "memory", "mlx", "known", "files", "threads", "nothing"
};

/* Returns the number of an allocation of so many bytes, from 1, among those known to be fatal; 0
 * for others. */
static long failing_known(size_t bytes);

static struct {
    int counting;           /* whether anything is counted now */
    enum failing_kind kind; /* what fails, and which one; 0 for none */
    long at;
    long counts[FAILING_KINDS];
    long fired;    /* what failed: bytes, or the number of the system call; -1 if nothing has */
    int in_folder; /* whether it was a removal, or a folder was read */
    size_t threshold;
} failing;

/* Counts one; returns whether it must fail. */
static int failing_now(enum failing_kind kind, long what) {
    if (!__atomic_load_n(&failing.counting, __ATOMIC_ACQUIRE)) {
        return 0;
    }
    if (__atomic_add_fetch(&failing.counts[kind], 1, __ATOMIC_ACQ_REL) != failing.at ||
        kind != failing.kind) {
        return 0;
    }
    __atomic_store_n(&failing.fired, what, __ATOMIC_RELEASE);
    return 1;
}

/* Fails the n-th of a kind between failing_go and failing_pause; none if n is 0. */
static void failing_arm(enum failing_kind kind, long n) {
    memset(failing.counts, 0, sizeof failing.counts);
    failing.kind = kind;
    failing.at = n;
    failing.fired = -1;
    failing.in_folder = 0;
}

static void failing_go(void) { __atomic_store_n(&failing.counting, 1, __ATOMIC_RELEASE); }

static void failing_pause(void) { __atomic_store_n(&failing.counting, 0, __ATOMIC_RELEASE); }

/* ---------------------------------------------------------------- memory */

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

/* Returns whether an address is in MLX's library. */
static int failing_in_mlx(const void *address) {
    Dl_info info;
    return dladdr(address, &info) && info.dli_fname && strstr(info.dli_fname, "libmlx.so");
}

/* Returns whether an allocation that returns to an address must fail. */
static int failing_memory(size_t bytes, const void *caller) {
    enum failing_kind kind;
    long known;
    if (failing.threshold == 0 || bytes < failing.threshold ||
        !__atomic_load_n(&failing.counting, __ATOMIC_ACQUIRE)) {
        return 0;
    }
    known = failing_known(bytes);
    kind = known ? FAILING_KNOWN : failing_in_mlx(caller) ? FAILING_MLX : FAILING_MEMORY;
    if (known && failing.counts[FAILING_KNOWN] == 0) {
        failing.counts[FAILING_KNOWN] =
            known - 1; /* such an allocation has a number: it does not matter when it occurs */
    }
    if (!failing_now(kind, (long)bytes)) {
        return 0;
    }
    errno = ENOMEM;
    return 1;
}

#define FAILING_MEMORY_NOW(bytes) failing_memory(bytes, __builtin_return_address(0))

void *malloc(size_t bytes) { return FAILING_MEMORY_NOW(bytes) ? NULL : __libc_malloc(bytes); }

void *calloc(size_t count, size_t bytes) {
    return FAILING_MEMORY_NOW(count * bytes) ? NULL : __libc_calloc(count, bytes);
}

void *realloc(void *block, size_t bytes) {
    return FAILING_MEMORY_NOW(bytes) ? NULL : __libc_realloc(block, bytes);
}

void *aligned_alloc(size_t alignment, size_t bytes) {
    return FAILING_MEMORY_NOW(bytes) ? NULL : __libc_memalign(alignment, bytes);
}

void *memalign(size_t alignment, size_t bytes) {
    return FAILING_MEMORY_NOW(bytes) ? NULL : __libc_memalign(alignment, bytes);
}

int posix_memalign(void **place, size_t alignment, size_t bytes) {
    void *block = FAILING_MEMORY_NOW(bytes) ? NULL : __libc_memalign(alignment, bytes);
    if (block == NULL) {
        return ENOMEM;
    }
    *place = block;
    return 0;
}

void *mmap(void *address, size_t bytes, int protection, int flags, int file, off_t offset) {
    if ((flags & MAP_ANONYMOUS) && FAILING_MEMORY_NOW(bytes)) {
        return MAP_FAILED;
    }
    return (void *)syscall(SYS_mmap, address, bytes, protection, flags, file, offset);
}

/* ---------------------------------------------------------------- threads */

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*body)(void *),
                   void *argument) {
    static int (*create)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    if (create == NULL) {
        *(void **)&create = dlsym(RTLD_NEXT, "pthread_create");
    }
    return failing_now(FAILING_THREADS, 1) ? EAGAIN : create(thread, attributes, body, argument);
}

/* ---------------------------------------------------------------- files */

/* The sixth argument of system calls that must pass; none of those below has six. */
enum { FAILING_PASS = 0x6d6f7869 };

static const int FAILING_CALLS[] = {
#ifdef __x86_64__
    SYS_open,       SYS_creat,     SYS_stat,       SYS_lstat,      SYS_rename,    SYS_mkdir,
    SYS_unlink,     SYS_rmdir,     SYS_chmod,      SYS_readlink,   SYS_getdents,
#endif
#ifdef SYS_renameat
    SYS_renameat,
#endif
#ifdef SYS_newfstatat
    SYS_newfstatat,
#endif
    SYS_openat,     SYS_openat2,   SYS_read,       SYS_readv,      SYS_pread64,   SYS_write,
    SYS_writev,     SYS_pwrite64,  SYS_fstat,      SYS_statx,      SYS_lseek,     SYS_renameat2,
    SYS_fsync,      SYS_fdatasync, SYS_mkdirat,    SYS_unlinkat,   SYS_ftruncate, SYS_fallocate,
    SYS_fchmod,     SYS_fchmodat,  SYS_readlinkat, SYS_getdents64, SYS_getcwd,    SYS_sendfile,
    SYS_flock,
};

enum { FAILING_CALL_COUNT = sizeof FAILING_CALLS / sizeof FAILING_CALLS[0] };

/* The error of a full disk, a process without descriptors, or a broken disk. */
static int failing_errno(long call) {
    switch (call) {
    case SYS_openat:
        return EMFILE;
    case SYS_write:
    case SYS_writev:
    case SYS_pwrite64:
    case SYS_mkdirat:
    case SYS_ftruncate:
    case SYS_fallocate:
        return ENOSPC;
    default:
        return EIO;
    }
}

/* Returns whether a call queries an open file, as reading a folder also does. */
static int failing_is_fstat(long call) {
#ifdef SYS_newfstatat
    if (call == SYS_newfstatat) {
        return 1;
    }
#endif
    return call == SYS_fstat;
}

static void failing_on_call(int signal_number, siginfo_t *info, void *context) {
    mcontext_t *machine = &((ucontext_t *)context)->uc_mcontext;
    int saved = errno, call = info->si_syscall;
#ifdef __x86_64__
    greg_t *r = machine->gregs;
    long a[5] = { r[REG_RDI], r[REG_RSI], r[REG_RDX], r[REG_R10], r[REG_R8] };
#else
    long a[5];
    memcpy(a, machine->regs, sizeof a);
#endif
    int fails = failing_now(FAILING_FILES, call);
    long result = 0;
    (void)signal_number;
    if (fails) {
        failing.in_folder = call == SYS_unlinkat || call == SYS_getdents64 ||
                            (call == SYS_openat && a[2] & O_DIRECTORY) || failing_is_fstat(call);
    }
    if (!fails) {
        result = syscall(call, a[0], a[1], a[2], a[3], a[4], (long)FAILING_PASS);
        result = result == -1 ? -errno : result;
    }
    result = fails ? -failing_errno(call) : result;
    errno = saved;
#ifdef __x86_64__
    r[REG_RAX] = result;
#else
    machine->regs[0] = (unsigned long long)result;
#endif
}

/* Counts file operations of this thread and of those that it starts. Returns whether that is
 * possible here. */
static int failing_watch_files(void) {
    struct sock_filter filter[FAILING_CALL_COUNT + 8];
    struct sock_fprog program;
    struct sigaction action;
    unsigned short n = 0, i;
    /* copy_file_range has six arguments: it fails as on a kernel without it, so that its fallback
     * is counted. */
    filter[n++] =
        (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    filter[n++] =
        (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_copy_file_range, 0, 1);
    filter[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS);
    for (i = 0; i < FAILING_CALL_COUNT; i++) {
        unsigned char to_last = (unsigned char)(FAILING_CALL_COUNT - i);
        filter[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K,
                                                   (unsigned)FAILING_CALLS[i], to_last, 0);
    }
    filter[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    filter[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
                                               offsetof(struct seccomp_data, args[5]));
    filter[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, FAILING_PASS, 0, 1);
    filter[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    filter[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP);
    program.len = n;
    program.filter = filter;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = failing_on_call;
    action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_RESTART;
    return sigaction(SIGSYS, &action, NULL) == 0 && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

#endif
