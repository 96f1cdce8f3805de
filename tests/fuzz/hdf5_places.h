/* Mutations of an HDF5 file where they matter: near the signatures and messages of its metadata, and in its first
 * bytes. */
#ifndef SPT_HDF5_PLACES_H
#define SPT_HDF5_PLACES_H

#include "fuzz.h"

#include <string.h>

/* Where a structure begins, near the `wanted`th of those found; `header` (a user block's size) where there is none. */
static inline size_t hdf5_places_find(const uint8_t *data, size_t size, size_t header, unsigned wanted) {
  static const char *const signatures[] = {"\x89HDF", "TREE", "SNOD", "HEAP", "GCOL", "OHDR", "OCHK",
                                           "FRHP",    "FHDB", "BTHD", "BTLF", "FADB", "EAHD"};
  enum { SIGNATURES = sizeof signatures / sizeof *signatures, PLACES_MAX = 64 };
  size_t places[PLACES_MAX], count = 0;
  for (size_t at = header; at + 4 <= size && count < PLACES_MAX; at++)
    for (int i = 0; i < SIGNATURES && count < PLACES_MAX; i++)
      if (memcmp(data + at, signatures[i], 4) == 0) places[count++] = at;
  return count ? places[wanted % count] : header;
}

/* One mutation: of the bytes behind a structure's beginning (3 of 4), else anywhere behind the user block or, rarely,
 * in it. */
static inline size_t hdf5_places_mutate(uint8_t *data, size_t size, size_t most, size_t header, unsigned seed) {
  static const size_t spans[] = {16, 64, 256, 1024};
  const unsigned mode = seed >> 3 & 7;
  if (mode == 0 || size <= header) return LLVMFuzzerMutate(data, size, most);
  if (mode == 1) return header + LLVMFuzzerMutate(data + header, size - header, most - header);
  const size_t begin = hdf5_places_find(data, size, header, seed >> 8), span = spans[seed >> 6 & 3];
  const size_t count = size - begin < span ? size - begin : span;
  uint8_t piece[1024];
  memcpy(piece, data + begin, count);
  const size_t changed = LLVMFuzzerMutate(piece, count, count); // no longer: nothing behind it moves
  memcpy(data + begin, piece, changed);
  return size;
}

#endif
