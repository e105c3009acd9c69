// Writes that take their time, for LD_PRELOAD: SLOW_DISK_MS milliseconds more for each one
// to a checkpoint. TensorStore writes from C++, past anything that Python could slow down.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void dawdle(int fd) {
  const char *ms = getenv("SLOW_DISK_MS");
  char link[64], path[4096];
  if (!ms) return;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, path, sizeof path - 1);
  if (n <= 0) return;
  path[n] = 0;
  if (strstr(path, "/checkpoints/")) usleep(1000 * atoi(ms));
}

ssize_t write(int fd, const void *data, size_t size) {
  static ssize_t (*real)(int, const void *, size_t);
  if (!real) real = dlsym(RTLD_NEXT, "write");
  dawdle(fd);
  return real(fd, data, size);
}

int fsync(int fd) {
  static int (*real)(int);
  if (!real) real = dlsym(RTLD_NEXT, "fsync");
  dawdle(fd);
  return real(fd);
}
