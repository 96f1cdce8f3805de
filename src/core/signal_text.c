#include "signal_text.h"

#include <unistd.h>

void spt_signal_text_word(spt_signal_text *text, const char *word) {
  while (*word && text->length < sizeof text->bytes - 1) text->bytes[text->length++] = *word++; // room for the newline
}

void spt_signal_text_number(spt_signal_text *text, int64_t number) {
  char digits[24], *first = digits + sizeof digits - 1;
  *first = '\0';
  int64_t rest = number;
  do *--first = (char)('0' + (rest < 0 ? -(rest % 10) : rest % 10));
  while ((rest /= 10) != 0);
  if (number < 0) *--first = '-';
  spt_signal_text_word(text, first);
}

void spt_signal_text_line(spt_signal_text *text) {
  text->bytes[text->length++] = '\n';
  if (write(STDERR_FILENO, text->bytes, text->length) < 0) {} // nobody to tell
  text->length = 0;
}
