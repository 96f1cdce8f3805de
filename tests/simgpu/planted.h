/* Cases of the simulator's own tests: a program that is right, or one with a fault planted, whose words are wanted on stderr. A fault ends the process,
 * so each case runs in a child. */
#ifndef SIMGPU_PLANTED_H
#define SIMGPU_PLANTED_H

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cuda_runtime.h>
#include <sys/wait.h>
#include <unistd.h>

namespace planted {

inline void must(cudaError_t error) {
  if (error == cudaSuccess) return;
  fprintf(stderr, "%s\n", cudaGetErrorString(error));
  exit(3);
}
inline void expect(bool condition, const char *what) {
  if (condition) return;
  fprintf(stderr, "not so: %s\n", what);
  exit(4);
}

template <class... Arguments> struct test_case {
  const char *name;
  void (*body)(Arguments...);
  const char *words; /* of the fault; nullptr: none */
};

/* Runs a case in a child; its stderr into text. Returns its exit status. */
template <class Case, class Run> int run_case(const Case &c, Run run, char *text, size_t size) {
  int ends[2];
  if (pipe(ends) != 0) return -1;
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], STDERR_FILENO);
    close(ends[0]);
    run(c);
    _exit(0);
  }
  close(ends[1]);
  size_t at = 0;
  for (ssize_t n; at + 1 < size && (n = read(ends[0], text + at, size - 1 - at)) > 0;) at += (size_t)n;
  char rest[4096];
  while (read(ends[0], rest, sizeof rest) > 0) {}
  text[at] = '\0';
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* run(c) in a child for each of the cases; the status for main. */
template <class Case, size_t COUNT, class Run> int run_all(const Case (&cases)[COUNT], Run run) {
  static char text[1 << 16];
  setvbuf(stdout, nullptr, _IOLBF, 0); // children must not print it again
  int failed = 0;
  for (const Case &c : cases) {
    const int status = run_case(c, run, text, sizeof text);
    const bool good = c.words ? status != 0 && strstr(text, c.words) : status == 0;
    printf("%s: %s\n", good ? "ok" : "FAIL", c.name);
    if (!good) printf("  exit %d, wanted %s; it said:\n%s\n", status, c.words ? c.words : "none", text);
    failed += !good;
  }
  printf("%d cases, %d failed\n", (int)COUNT, failed);
  return failed != 0;
}

} // namespace planted

#endif
