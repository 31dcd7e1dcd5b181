/*
 * A power cut for tests: remembers, for everything below one directory, what a crash of the machine could not take away.
 *
 * Preloaded into a process (LD_PRELOAD), it interposes fsync and fdatasync. A file's bytes count as durable as they
 * stood when its last successful fsync began; a directory's names count as durable as they stood when the directory was
 * last fsynced (POSIX promises no more, even where a file system gives more). After the process has been killed, the
 * test rebuilds the directory from these notes alone (tests/crash/harness.py, power_cut) and so drops every byte, name,
 * rename and removal that was never synced.
 *
 * Environment:
 *   UNSYNCED_ROOT     absolute, resolved path of the directory watched
 *   UNSYNCED_NOTES    directory for the notes, outside the root
 *   UNSYNCED_SYNCS    number: the process dies (SIGKILL) right after that many syncs below the root; absent: it lives on
 *   UNSYNCED_CONTROL  file of commands, read at every interposed call while it exists:
 *                              "eio"      fsync and fdatasync fail with EIO and sync nothing
 *                              "enospc"   write and its kin fail with ENOSPC
 *                              "delay N"  fsync and fdatasync take N milliseconds longer
 *
 * Notes: `content/KEY` holds the durable bytes of a file and `listing/KEY` the durable names of a directory, one line
 * "f KEY NAME" or "d KEY NAME" each. KEY is inode and birth time, so renames follow by themselves and a reused inode
 * is another file. What is there when the first process starts is taken as durable: it notes all of it before its first
 * instruction. The note `root`, the root's KEY, comes last: without it that process died before it had changed anything,
 * the other notes may be a part, and the root is durable as it stands. Files named *.log and MANIFEST-* are only appended
 * to, so just their growth is copied; any other file is copied whole at each fsync.
 *
 * Not modelled: mmap with msync, sync, syncfs, O_SYNC. Nothing under test uses them.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static const char *root, *notes, *control;
static size_t root_length;
static long syncs_left;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static ssize_t (*real_pwrite64)(int, const void *, size_t, off64_t);
static ssize_t (*real_writev)(int, const struct iovec *, int);

static void resolve(void) {
    if (real_fsync) return;
    real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    real_write = dlsym(RTLD_NEXT, "write");
    real_pwrite = dlsym(RTLD_NEXT, "pwrite");
    real_pwrite64 = dlsym(RTLD_NEXT, "pwrite64");
    real_writev = dlsym(RTLD_NEXT, "writev");
    real_fsync = dlsym(RTLD_NEXT, "fsync");
}

/* A note that cannot be taken would make a later test lie, so the process ends instead. */
static void die(const char *what, const char *path) {
    dprintf(2, "unsynced: %s %s: %s\n", what, path, strerror(errno));
    _exit(99);
}

static int below_root(int descriptor, char *path, size_t size) {
    char link[64];
    if (!root) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, size - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return !strncmp(path, root, root_length) && (path[root_length] == 0 || path[root_length] == '/');
}

static int key_of(int directory, const char *name, char *key, size_t size, unsigned *mode) {
    struct statx status;
    int flags = AT_SYMLINK_NOFOLLOW | (*name ? 0 : AT_EMPTY_PATH);
    if (syscall(SYS_statx, directory, name, flags, STATX_INO | STATX_BTIME | STATX_MODE, &status) < 0) return -1;
    long long birth = status.stx_mask & STATX_BTIME
                          ? (long long)status.stx_btime.tv_sec * 1000000000 + status.stx_btime.tv_nsec
                          : 0;
    snprintf(key, size, "%llu-%lld", (unsigned long long)status.stx_ino, birth);
    *mode = status.stx_mode;
    return 0;
}

static void note_listing(int descriptor, const char *key, const char *path) {
    char temporary[PATH_MAX], final[PATH_MAX];
    snprintf(temporary, sizeof temporary, "%s/listing/%s.%d", notes, key, (int)getpid());
    snprintf(final, sizeof final, "%s/listing/%s", notes, key);
    FILE *out = fopen(temporary, "w");
    if (!out) die("cannot write", temporary);
    int again = openat(descriptor, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *directory = again < 0 ? NULL : fdopendir(again);
    if (!directory) die("cannot list", path);
    struct dirent *entry;
    while ((entry = readdir(directory))) {
        char child[64];
        unsigned mode;
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        if (key_of(descriptor, entry->d_name, child, sizeof child, &mode) < 0) continue; /* removed meanwhile */
        if (S_ISREG(mode) || S_ISDIR(mode)) fprintf(out, "%c %s %s\n", S_ISDIR(mode) ? 'd' : 'f', child, entry->d_name);
    }
    closedir(directory);
    if (fclose(out)) die("cannot write", temporary);
    if (rename(temporary, final)) die("cannot rename", temporary);
}

static int append_only(const char *path) {
    const char *name = strrchr(path, '/');
    size_t length = strlen(path);
    name = name ? name + 1 : path;
    return !strncmp(name, "MANIFEST-", 9) || (length > 4 && !strcmp(path + length - 4, ".log"));
}

/* Copies the first `size` bytes of the file. The descriptor may be write-only, so the file is opened anew. */
static void note_content(int descriptor, const char *key, const char *path, off_t size) {
    char final[PATH_MAX], link[64];
    static char buffer[1 << 20];
    snprintf(final, sizeof final, "%s/content/%s", notes, key);
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    int in = open(link, O_RDONLY | O_CLOEXEC), out = open(final, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (in < 0) die("cannot read", path);
    if (out < 0) die("cannot write", final);
    struct stat status;
    if (fstat(out, &status)) die("cannot stat", final);
    off_t at = append_only(path) ? status.st_size : 0;
    if (at > size) at = 0;
    while (at < size) {
        size_t want = size - at < (off_t)sizeof buffer ? (size_t)(size - at) : sizeof buffer;
        ssize_t got = pread(in, buffer, want, at);
        if (got < 0) die("cannot read", path);
        if (got == 0) break; /* cut meanwhile */
        if (real_pwrite(out, buffer, got, at) != got) die("cannot write", final);
        at += got;
    }
    if (ftruncate(out, at)) die("cannot cut", final);
    close(in);
    close(out);
}

static void note_tree(const char *path) {
    char key[64];
    unsigned mode;
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0 || key_of(descriptor, "", key, sizeof key, &mode) < 0) die("cannot read", path);
    if (S_ISDIR(mode)) {
        note_listing(descriptor, key, path);
        DIR *directory = opendir(path);
        struct dirent *entry;
        while (directory && (entry = readdir(directory))) {
            char child[PATH_MAX];
            if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
            snprintf(child, sizeof child, "%s/%s", path, entry->d_name);
            if (entry->d_type == DT_DIR || entry->d_type == DT_REG) note_tree(child);
        }
        if (directory) closedir(directory);
    } else {
        struct stat status;
        if (fstat(descriptor, &status)) die("cannot stat", path);
        note_content(descriptor, key, path, status.st_size);
    }
    close(descriptor);
}

/* A child forked while another thread takes a note would wait for the lock for ever. */
static void take_lock(void) { pthread_mutex_lock(&lock); }
static void give_lock(void) { pthread_mutex_unlock(&lock); }

/* Notes what is there at the start, unless an earlier process of the same run has. */
static void note_start(void) {
    char path[PATH_MAX], temporary[PATH_MAX], key[64];
    unsigned mode;
    snprintf(path, sizeof path, "%s/lock", notes);
    int gate = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600); /* a death gives it back */
    if (gate < 0 || flock(gate, LOCK_EX)) die("cannot lock", path);
    snprintf(path, sizeof path, "%s/root", notes);
    if (!access(path, F_OK)) {
        close(gate);
        return;
    }
    snprintf(temporary, sizeof temporary, "%s/content", notes);
    if (mkdir(temporary, 0700) && errno != EEXIST) die("cannot make", temporary);
    snprintf(temporary, sizeof temporary, "%s/listing", notes);
    if (mkdir(temporary, 0700) && errno != EEXIST) die("cannot make", temporary);
    note_tree(root);
    if (key_of(AT_FDCWD, root, key, sizeof key, &mode) < 0) die("cannot stat", root);
    snprintf(temporary, sizeof temporary, "%s/root.new", notes);
    int descriptor = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (descriptor < 0 || real_write(descriptor, key, strlen(key)) < 0) die("cannot write", temporary);
    close(descriptor);
    if (rename(temporary, path)) die("cannot rename", temporary);
    close(gate);
}

__attribute__((constructor)) static void begin(void) {
    resolve();
    pthread_atfork(take_lock, give_lock, give_lock);
    const char *watched = getenv("UNSYNCED_ROOT"), *syncs = getenv("UNSYNCED_SYNCS");
    notes = getenv("UNSYNCED_NOTES");
    control = getenv("UNSYNCED_CONTROL");
    if (!watched || !notes) return;
    root = watched;
    root_length = strlen(root);
    syncs_left = syncs ? atol(syncs) : 0;
    note_start();
}

static int commanded(const char *word, char *argument, size_t size) {
    char text[64];
    if (!control || access(control, F_OK)) return 0;
    int descriptor = open(control, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) return 0;
    ssize_t length = read(descriptor, text, sizeof text - 1);
    close(descriptor);
    if (length <= 0) return 0;
    text[length] = 0;
    if (strncmp(text, word, strlen(word))) return 0;
    if (argument) snprintf(argument, size, "%s", text + strlen(word));
    return 1;
}

static int sync_and_note(int descriptor, int (*real)(int)) {
    char path[PATH_MAX], key[64], argument[64];
    unsigned mode;
    struct stat status;
    if (!below_root(descriptor, path, sizeof path)) return real(descriptor);
    if (commanded("eio", NULL, 0)) {
        errno = EIO;
        return -1;
    }
    if (commanded("delay ", argument, sizeof argument)) usleep(1000 * atoi(argument));
    if (fstat(descriptor, &status)) return -1;
    if (real(descriptor)) return -1;
    pthread_mutex_lock(&lock);
    if (key_of(descriptor, "", key, sizeof key, &mode) < 0) die("cannot stat", path);
    if (S_ISDIR(mode))
        note_listing(descriptor, key, path);
    else
        note_content(descriptor, key, path, status.st_size);
    if (syncs_left && !--syncs_left) kill(getpid(), SIGKILL);
    pthread_mutex_unlock(&lock);
    return 0;
}

int fsync(int descriptor) {
    resolve();
    return sync_and_note(descriptor, real_fsync);
}

int fdatasync(int descriptor) {
    resolve();
    return sync_and_note(descriptor, real_fdatasync);
}

static int refused(int descriptor) {
    char path[PATH_MAX];
    if (!control || access(control, F_OK) || !below_root(descriptor, path, sizeof path)) return 0;
    if (!commanded("enospc", NULL, 0)) return 0;
    errno = ENOSPC;
    return 1;
}

ssize_t write(int descriptor, const void *bytes, size_t count) {
    resolve();
    return refused(descriptor) ? -1 : real_write(descriptor, bytes, count);
}

ssize_t pwrite(int descriptor, const void *bytes, size_t count, off_t offset) {
    resolve();
    return refused(descriptor) ? -1 : real_pwrite(descriptor, bytes, count, offset);
}

ssize_t pwrite64(int descriptor, const void *bytes, size_t count, off64_t offset) {
    resolve();
    return refused(descriptor) ? -1 : real_pwrite64(descriptor, bytes, count, offset);
}

ssize_t writev(int descriptor, const struct iovec *parts, int count) {
    resolve();
    return refused(descriptor) ? -1 : real_writev(descriptor, parts, count);
}
