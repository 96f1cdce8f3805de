/* SentencePiece without our tokenizer around it: what our faster way must agree with. */
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

extern "C" long direct_encode(const char *model, const char *text, size_t bytes, uint32_t *ids, size_t capacity);

#ifdef SPT_HAVE_SENTENCEPIECE
#include <sentencepiece_processor.h>

// Tokens of the text (without an end), −1 on failure or when there are more than `capacity`.
long direct_encode(const char *model, const char *text, size_t bytes, uint32_t *ids, size_t capacity) {
  static sentencepiece::SentencePieceProcessor processor;
  static std::string loaded;
  if (loaded != model) {
    if (!processor.Load(model).ok()) return -1;
    loaded = model;
  }
  std::vector<int> found;
  if (!processor.Encode({text, bytes}, &found).ok() || found.size() > capacity) return -1;
  for (size_t i = 0; i < found.size(); i++) ids[i] = (uint32_t)found[i];
  return (long)found.size();
}
#endif
