/* A line of text put together and written with nothing but async-signal-safe calls: for signal handlers. */
#ifndef SPT_SIGNAL_TEXT_H
#define SPT_SIGNAL_TEXT_H

#include <stddef.h>
#include <stdint.h>

typedef struct spt_signal_text {
  size_t length; /* 0: empty */
  char bytes[2048];
} spt_signal_text;

/* Append; what does not fit is left out. */
void spt_signal_text_word(spt_signal_text *text, const char *word);
void spt_signal_text_number(spt_signal_text *text, int64_t number);
/* To stderr with a newline, in one write; the text is empty afterwards. */
void spt_signal_text_line(spt_signal_text *text);

#endif
