#include "decimal.h"

#include <stdio.h>
#include <stdlib.h>

void spt_shortest_decimal(double value, char text[32]) {
  for (int digits = 1; digits <= 17; digits++) {
    snprintf(text, 32, "%.*g", digits, value);
    if (strtod(text, NULL) == value) return;
  }
}

int64_t spt_decimal_product(double fraction, int64_t n, bool up) {
  __extension__ typedef unsigned __int128 wide;
  if (!(fraction > 0) || n <= 0) return 0;
  if (fraction >= 1) return n;
  char text[32];
  spt_shortest_decimal(fraction, text);
  uint64_t digits = 0; // fraction = digits·10^exponent, at most 17 digits, exponent < 0
  long exponent = 0;
  bool after_point = false;
  for (const char *c = text; *c; c++) {
    if (*c >= '0' && *c <= '9') {
      digits = digits * 10 + (uint64_t)(*c - '0');
      exponent -= after_point;
    } else if (*c == 'e') {
      exponent += strtol(c + 1, NULL, 10);
      break;
    } else {
      after_point = true;
    }
  }
  wide product = (wide)digits * (wide)(uint64_t)n; // < 2^57 · 2^53
  bool remainder = false;
  for (; exponent < 0 && product; exponent++) {
    remainder |= product % 10 != 0;
    product /= 10;
  }
  return (int64_t)product + (up && remainder);
}
