/* Fractions of a job file as the exact decimals that were written: 0.29·100 is 29, though the double nearest to 0.29
 * times 100 is less. */
#ifndef SPT_DECIMAL_H
#define SPT_DECIMAL_H

#include <stdbool.h>
#include <stdint.h>

/* The shortest decimal that reads back as exactly `value` (printf's %g form). */
void spt_shortest_decimal(double value, char text[32]);
/* ⌊fraction·n⌋, or ⌈fraction·n⌉ with `up`, for the fraction's shortest decimal. fraction in [0, 1], n in [0, 2^53]. */
int64_t spt_decimal_product(double fraction, int64_t n, bool up);

#endif
