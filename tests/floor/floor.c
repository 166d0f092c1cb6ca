// What the kernel alone takes for the parts of a pod, with nothing around them: nobody can be faster.
// Prints a line for each part: the median in milliseconds, and what it is. Run by hack/floor.
//
// usage: floor BUSYBOX DIR ROUNDS    BUSYBOX: a static executable. DIR: with `lower` (and `proc`, `busybox` in
//                                    it), `upper`, `work` and `root`.
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <sched.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char *busybox, *directory;
static char *const arguments[] = {"true", NULL}, *const nothing[] = {NULL};

static void check(long result, const char *what) {
    if (result < 0) err(1, "%s", what);
}

static void await(pid_t pid) {
    int status;
    if (waitpid(pid, &status, 0) != pid || status) errx(1, "a child failed");
}

static void program(void) {
    pid_t pid;
    if (posix_spawn(&pid, busybox, NULL, NULL, arguments, nothing)) errx(1, "posix_spawn");
    await(pid);
}

// The namespaces that are a container's own in a pod, its root, and its program.
static void container(void) {
    char overlay[4096];
    pid_t pid = syscall(SYS_clone, CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWCGROUP | SIGCHLD, 0, 0, 0, 0);
    check(pid, "clone");
    if (pid) {
        await(pid);
        return;
    }
    snprintf(overlay, sizeof overlay, "lowerdir=lower,upperdir=upper,workdir=work");
    check(mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL), "make / a slave");
    check(chdir(directory), "chdir");
    check(mount("overlay", "root", "overlay", 0, overlay), "mount overlay");
    check(chdir("root"), "chdir");
    check(mount("proc", "proc", "proc", 0, NULL), "mount proc");
    check(syscall(SYS_pivot_root, ".", "."), "pivot_root");
    check(umount2(".", MNT_DETACH), "umount");
    check(execve("/busybox", arguments, nothing), "execve");
}

// The kernel frees the one before in the background.
static void network(void) { check(unshare(CLONE_NEWNET), "unshare"); }

static void join(const char *cgroup, const char *file) {
    char path[2048];
    snprintf(path, sizeof path, "%s/%s", cgroup, file);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    check(fd, path);
    check(write(fd, "0", 1), path);
}

// Makes one in each hierarchy, joins it with a process, and removes it. Without `cpuset`, which takes no process
// before it has processors.
static void cgroup(void) {
    const char *controllers[] = {"blkio", "cpu", "cpuacct", "devices", "hugetlb", "memory", "pids"};
    char made[7][128];
    int count = 0, v1;
    for (int i = 0; i < 7; i++) {
        snprintf(made[count], sizeof *made, "/sys/fs/cgroup/%s/berth-floor", controllers[i]);
        count += mkdir(made[count], 0755) == 0;
    }
    v1 = count > 0;
    if (!v1) {
        snprintf(made[0], sizeof *made, "/sys/fs/cgroup/berth-floor");
        check(mkdir(made[count++], 0755), made[0]);
    }
    pid_t pid = fork();
    check(pid, "fork");
    if (pid == 0) {
        for (int i = 0; i < count; i++) join(made[i], v1 ? "tasks" : "cgroup.procs");
        _exit(0);
    }
    await(pid);
    for (int i = 0; i < count; i++) check(rmdir(made[i]), made[i]);
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void measure(const char *name, void (*part)(void), int rounds) {
    double *times = calloc(rounds, sizeof *times);
    for (int i = 0; i < rounds; i++) {
        struct timespec begun, ended;
        clock_gettime(CLOCK_MONOTONIC, &begun);
        part();
        clock_gettime(CLOCK_MONOTONIC, &ended);
        times[i] = (ended.tv_sec - begun.tv_sec) * 1e3 + (ended.tv_nsec - begun.tv_nsec) / 1e6;
    }
    qsort(times, rounds, sizeof *times, compare);
    printf("%6.2f  %s\n", times[rounds / 2], name);
    free(times);
}

int main(int count, char **given) {
    if (count != 4) errx(2, "usage: floor BUSYBOX DIR ROUNDS");
    busybox = given[1];
    directory = given[2];
    int rounds = atoi(given[3]);
    measure("fork, exec and wait for a program", program, rounds);
    measure("a container: namespaces, overlay, /proc, pivot_root, exec, wait", container, rounds);
    measure("its cgroup: in each hierarchy make, join and remove", cgroup, rounds);
    measure("a network namespace", network, rounds);
    return 0;
}
