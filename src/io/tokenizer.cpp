#include "tokenizer.h"

extern "C" { // a C header
#include "durable_file.h"
}

#include <openssl/evp.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>
#ifdef SPT_HAVE_SENTENCEPIECE
#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>
#endif

namespace {
using words = std::unordered_map<std::string, std::vector<int>>; // tokens of words met before
}

struct spt_tokenizer {
  std::string name, sha256;
  int64_t vocab_size = 257, eos = 256;
#ifdef SPT_HAVE_SENTENCEPIECE
  std::unique_ptr<sentencepiece::SentencePieceProcessor> processor; // empty: the byte tokenizer
  bool by_word = false;                                             // words encode independently of each other
  int space = -1;                                                   // token of a lone space
  mutable std::mutex mutex;                                         // guards idle
  mutable std::vector<std::unique_ptr<words>>
      idle; // one for each thread that encodes at a time, borrowed for a document
#endif
};

namespace {

spt_status sha256_hex(const std::string &bytes, std::string *hex_p) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned length = 0;
  if (EVP_Digest(bytes.data(), bytes.size(), digest, &length, EVP_sha256(), nullptr) != 1)
    return SPT_FAIL(SPT_ERR_RESOURCE, "SHA-256 is not available");
  hex_p->clear();
  for (unsigned i = 0; i < length; i++) {
    hex_p->push_back("0123456789abcdef"[digest[i] >> 4]);
    hex_p->push_back("0123456789abcdef"[digest[i] & 15]);
  }
  return SPT_OK;
}

#ifdef SPT_HAVE_SENTENCEPIECE
// One line: the library's messages can hold newlines, and what stands in the file.
std::string one_line(std::string text) {
  for (char &c : text)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = ' ';
  return text;
}

constexpr std::size_t words_max = 200000;
constexpr char space_mark[] = "\xE2\x96\x81"; // U+2581, what SentencePiece makes of a space

spt_status encode_whole(const spt_tokenizer *tokenizer, std::string_view text, std::vector<int> *ids) {
  const auto status = tokenizer->processor->Encode({text.data(), text.size()}, ids);
  if (status.ok()) return SPT_OK;
  return SPT_FAIL(SPT_ERR_DATA, "%s: a document cannot be encoded (%s)", tokenizer->name.c_str(),
                  one_line(status.ToString()).c_str());
}

// A run of spaces and what follows up to the next. The space that the library puts before a text stands for the first
// of them, but at the start of the document, where it comes on top.
spt_status encode_words(const spt_tokenizer *tokenizer, std::string_view text, words *known, std::vector<int> *ids) {
  ids->clear();
  std::vector<int> fresh;
  std::string key;
  for (std::size_t begin = 0; begin < text.size();) {
    std::size_t end = text.find_first_not_of(' ', begin);
    end = end == text.npos ? text.size() : std::min(text.find(' ', end), text.size());
    const std::string_view word = text.substr(begin + (begin > 0), end - begin - (begin > 0));
    begin = end;
    if (word.empty()) { // one space at the very end
      ids->push_back(tokenizer->space);
      continue;
    }
    key.assign(word);
    const auto found = known->find(key);
    if (found != known->end()) {
      ids->insert(ids->end(), found->second.begin(), found->second.end());
      continue;
    }
    SPT_TRY(encode_whole(tokenizer, word, &fresh));
    ids->insert(ids->end(), fresh.begin(), fresh.end());
    if (known->size() < words_max && word.size() < 64) known->emplace(key, fresh);
  }
  return SPT_OK;
}

// Words encode independently when no piece goes on behind a space and the model neither drops nor moves spaces: the
// first is read off the pieces, the second tried. Then a document's tokens are its words' tokens, exactly, ten times as
// fast.
bool words_are_independent(const spt_tokenizer *tokenizer) {
  const auto &processor = *tokenizer->processor;
  if (processor.IsUnknown(tokenizer->space)) return false;
  for (int id = 0; id < processor.GetPieceSize(); id++) {
    const std::string &piece = processor.IdToPiece(id);
    const std::size_t word = piece.find_first_not_of(space_mark); // none of the mark's bytes
    if (word != piece.npos && piece.find(space_mark, word) != piece.npos) return false;
  }
  static constexpr const char *probes[] = {"a",
                                           " a",
                                           "  a",
                                           "a ",
                                           "a  ",
                                           "a b  c   d",
                                           "x\ty\nz w",
                                           "1 2  3",
                                           "\xC3\xA9 \xCC\x81 e",
                                           "\xEF\xAC\x81 \xEF\xBD\x97 \xE3\x80\x80 \xC2\xA0 x",
                                           "\xFF \xFF"};
  words known;
  std::vector<int> whole, parts;
  for (const char *probe : probes)
    if (encode_whole(tokenizer, probe, &whole) != SPT_OK || encode_words(tokenizer, probe, &known, &parts) != SPT_OK ||
        whole != parts)
      return false;
  return true;
}

spt_status encode_text(const spt_tokenizer *tokenizer, std::string_view text, std::vector<int> *ids) {
  if (!tokenizer->by_word) return encode_whole(tokenizer, text, ids);
  std::unique_ptr<words> known;
  {
    const std::lock_guard<std::mutex> lock(tokenizer->mutex);
    if (!tokenizer->idle.empty()) {
      known = std::move(tokenizer->idle.back());
      tokenizer->idle.pop_back();
    }
  }
  if (!known) known = std::make_unique<words>();
  const spt_status status = encode_words(tokenizer, text, known.get(), ids);
  const std::lock_guard<std::mutex> lock(tokenizer->mutex);
  tokenizer->idle.push_back(std::move(known));
  return status;
}

// The file, when it is one of a model's size: neither a device nor what would fill the memory.
spt_status read_model(const char *path, std::string *bytes_p) {
  static constexpr std::uintmax_t most = 256 << 20;
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return SPT_FAIL(SPT_ERR_DATA, "%s: cannot be opened: no such file", path);
  const std::uintmax_t size =
      std::filesystem::is_regular_file(path, error) ? std::filesystem::file_size(path, error) : 0;
  if (error || size == 0 || size > most)
    return SPT_FAIL(SPT_ERR_DATA, "%s: not a SentencePiece model (no file of 1 byte to 256 MiB)", path);
  std::ifstream file(path, std::ios::binary);
  bytes_p->resize(size);
  if (!file.read(bytes_p->data(), (std::streamsize)size)) return SPT_FAIL(SPT_ERR_DATA, "%s: cannot be read", path);
  return SPT_OK;
}

spt_status load_model(const char *path, spt_tokenizer *tokenizer) {
  std::string bytes;
  SPT_TRY(read_model(path, &bytes));
  tokenizer->processor = std::make_unique<sentencepiece::SentencePieceProcessor>();
  const auto loaded = tokenizer->processor->LoadFromSerializedProto(bytes);
  if (!loaded.ok() || tokenizer->processor->GetPieceSize() < 1)
    return SPT_FAIL(SPT_ERR_DATA, "%s: not a SentencePiece model (%s)", path, one_line(loaded.ToString()).c_str());
  tokenizer->vocab_size = tokenizer->processor->GetPieceSize();
  tokenizer->eos = tokenizer->processor->eos_id();
  if (tokenizer->eos < 0)
    return SPT_FAIL(SPT_ERR_DATA, "%s: the model has no end-of-sequence token, which ends a document", path);
  const char *slash = std::strrchr(path, '/');
  tokenizer->name = slash ? slash + 1 : path;
  tokenizer->space = tokenizer->processor->PieceToId(space_mark);
  tokenizer->by_word = words_are_independent(tokenizer);
  spt_error_clear();
  return sha256_hex(bytes, &tokenizer->sha256);
}

// Feeds lines of the input files to the trainer: a sample of about `budget` bytes, chosen by position so that it is the
// same each time, long lines in pieces (the trainer skips lines above its limit).
class LineSample : public sentencepiece::SentenceIterator {
public:
  LineSample(const std::vector<std::string> &paths, uint64_t total, uint64_t budget)
      : paths_(paths), keep_(total > budget ? (double)budget / (double)total : 1.0) {
    Next();
  }
  bool done() const override { return done_; }
  const std::string &value() const override { return piece_; }
  sentencepiece::util::Status status() const override { return status_; }
  void Next() override {
    do {
      if (!next_piece()) {
        done_ = true;
        return;
      }
      share_ += keep_; // error diffusion: evenly spread, exact on average
    } while (share_ < 1.0);
    share_ -= 1.0;
  }

private:
  static constexpr size_t piece_bytes = 2000;
  bool next_piece() {
    while (begin_ >= line_.size()) {
      if (!file_.is_open()) {
        if (path_ == paths_.size()) return false;
        file_.open(paths_[path_++], std::ios::binary);
      }
      begin_ = 0;
      if (!std::getline(file_, line_)) {
        line_.clear();
        file_.close();
        file_.clear();
      }
    }
    size_t end = line_.size();
    if (end - begin_ > piece_bytes) { // cut at a space; without one, at the start of a character
      end = line_.rfind(' ', begin_ + piece_bytes);
      if (end == std::string::npos || end <= begin_)
        for (end = begin_ + piece_bytes; end > begin_ + 1 && ((unsigned char)line_[end] & 0xC0) == 0x80;) end--;
    }
    piece_.assign(line_, begin_, end - begin_);
    begin_ = end;
    return true;
  }
  std::vector<std::string> paths_;
  double keep_, share_ = 0.5;
  size_t path_ = 0, begin_ = 0;
  std::ifstream file_;
  std::string line_, piece_;
  bool done_ = false;
  sentencepiece::util::Status status_;
};

spt_status count_bytes(const std::vector<std::string> &paths, uint64_t *total_p) {
  *total_p = 0;
  for (const std::string &path : paths) {
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    if (!file) return SPT_FAIL(SPT_ERR_DATA, "%s: cannot be opened: %s", path.c_str(), std::strerror(errno));
    *total_p += (uint64_t)file.tellg();
  }
  return SPT_OK;
}

// Case and whitespace are kept (identity rule, nothing removed), so that decoding gives the text back; digits are
// single tokens; what has no piece is spelt in bytes.
spt_status train(const std::vector<std::string> &paths, int64_t vocab_size, const std::string &prefix) {
  uint64_t total;
  SPT_TRY(count_bytes(paths, &total));
  LineSample lines(
      paths, total,
      std::max<uint64_t>(UINT64_C(8) << 20, 2048 * (uint64_t)vocab_size)); // what is needed grows with the vocabulary
  sentencepiece::SetRandomGeneratorSeed(1);
  std::string model;
  const auto status = sentencepiece::SentencePieceTrainer::Train({{"model_type", "bpe"},
                                                                  {"vocab_size", std::to_string(vocab_size)},
                                                                  {"byte_fallback", "true"},
                                                                  {"character_coverage", "0.9995"},
                                                                  {"normalization_rule_name", "identity"},
                                                                  {"remove_extra_whitespaces", "false"},
                                                                  {"allow_whitespace_only_pieces", "true"},
                                                                  {"split_digits", "true"},
                                                                  {"unk_id", "0"},
                                                                  {"bos_id", "-1"},
                                                                  {"eos_id", "1"},
                                                                  {"pad_id", "-1"},
                                                                  {"num_threads", "2"},
                                                                  {"minloglevel", "3"}},
                                                                 &lines, &model);
  if (!status.ok())
    return SPT_FAIL(SPT_ERR_USAGE, "%s: no tokenizer of %lld pieces can be trained on this text (%s)", prefix.c_str(),
                    (long long)vocab_size, one_line(status.ToString()).c_str());
  return spt_file_replace((prefix + ".model").c_str(), model.data(), model.size());
}
#endif

spt_status grow(uint32_t **ids_p, size_t *capacity_p, size_t count) {
  if (count <= *capacity_p) return SPT_OK;
  const size_t capacity = count + count / 2;
  void *ids = std::realloc(*ids_p, capacity * sizeof(uint32_t));
  if (!ids) return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory for a document of %zu tokens", count);
  *ids_p = static_cast<uint32_t *>(ids);
  *capacity_p = capacity;
  return SPT_OK;
}

spt_status encode(const spt_tokenizer *tokenizer, const char *text, size_t bytes, uint32_t **ids_p, size_t *capacity_p,
                  size_t *count_p) {
#ifdef SPT_HAVE_SENTENCEPIECE
  if (tokenizer->processor) {
    std::vector<int> ids;
    SPT_TRY(encode_text(tokenizer, {text, bytes}, &ids));
    SPT_TRY(grow(ids_p, capacity_p, ids.size() + 1));
    for (size_t i = 0; i < ids.size(); i++) (*ids_p)[i] = (uint32_t)ids[i];
    (*ids_p)[ids.size()] = (uint32_t)tokenizer->eos;
    *count_p = ids.size() + 1;
    return SPT_OK;
  }
#endif
  SPT_TRY(grow(ids_p, capacity_p, bytes + 1));
  for (size_t i = 0; i < bytes; i++) (*ids_p)[i] = (unsigned char)text[i];
  (*ids_p)[bytes] = (uint32_t)tokenizer->eos;
  *count_p = bytes + 1;
  return SPT_OK;
}

// Adds the text of ids without eos.
spt_status decode_part([[maybe_unused]] const spt_tokenizer *tokenizer, const uint32_t *ids, size_t count,
                       std::string *text) {
#ifdef SPT_HAVE_SENTENCEPIECE
  if (tokenizer->processor) {
    std::string part;
    const auto status = tokenizer->processor->Decode(std::vector<int>(ids, ids + count), &part);
    if (!status.ok())
      return SPT_FAIL(SPT_ERR_DATA, "%s: tokens cannot be decoded (%s)", tokenizer->name.c_str(),
                      one_line(status.ToString()).c_str());
    *text += part;
    return SPT_OK;
  }
#endif
  for (size_t i = 0; i < count; i++) text->push_back((char)ids[i]);
  return SPT_OK;
}

spt_status decode(const spt_tokenizer *tokenizer, const uint32_t *ids, size_t count, char **text_p) {
  std::string text;
  for (size_t begin = 0; begin < count;) {
    size_t end = begin;
    for (; end < count && ids[end] != (uint64_t)tokenizer->eos; end++)
      if (ids[end] >= (uint64_t)tokenizer->vocab_size)
        return SPT_FAIL(SPT_ERR_DATA, "%s: token %u is outside of the vocabulary of %lld", tokenizer->name.c_str(),
                        ids[end], (long long)tokenizer->vocab_size);
    SPT_TRY(decode_part(tokenizer, ids + begin, end - begin, &text));
    if (end < count) text.push_back('\n');
    begin = end + 1;
  }
  char *copy = static_cast<char *>(std::malloc(text.size() + 1));
  if (!copy) return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory for %zu bytes of text", text.size());
  std::memcpy(copy, text.c_str(), text.size() + 1);
  *text_p = copy;
  return SPT_OK;
}

spt_status open_tokenizer(const char *model, spt_tokenizer **tokenizer_p) {
  auto tokenizer = std::make_unique<spt_tokenizer>();
  if (!std::strcmp(model, "byte")) {
    tokenizer->name = "byte";
    SPT_TRY(sha256_hex("byte", &tokenizer->sha256));
  } else {
#ifdef SPT_HAVE_SENTENCEPIECE
    SPT_TRY(load_model(model, tokenizer.get()));
#else
    return SPT_FAIL(
        SPT_ERR_USAGE,
        "%s: built without SentencePiece: install libsentencepiece-dev and build again, or use the tokenizer 'byte'",
        model);
#endif
  }
  *tokenizer_p = tokenizer.release();
  return SPT_OK;
}

// No exception crosses into C.
template <typename F> spt_status guarded(F &&body) {
  try {
    return body();
  } catch (const std::bad_alloc &) {
    return SPT_FAIL(SPT_ERR_RESOURCE, "tokenizer: out of memory");
  } catch (const std::exception &error) {
    return SPT_FAIL(SPT_ERR_DATA, "tokenizer: %s", error.what());
  }
}

} // namespace

spt_status spt_tokenizer_open(const char *model, spt_tokenizer **tokenizer_p) {
  return guarded([&] { return open_tokenizer(model, tokenizer_p); });
}

void spt_tokenizer_close(spt_tokenizer **tokenizer_p) {
  delete *tokenizer_p;
  *tokenizer_p = nullptr;
}

spt_status spt_tokenizer_train(const char *const *inputs, int input_count, int64_t vocab_size, const char *prefix) {
#ifdef SPT_HAVE_SENTENCEPIECE
  return guarded([&] { return train(std::vector<std::string>(inputs, inputs + input_count), vocab_size, prefix); });
#else
  (void)inputs, (void)input_count, (void)vocab_size;
  return SPT_FAIL(
      SPT_ERR_USAGE,
      "%s: built without SentencePiece, no tokenizer can be trained: install libsentencepiece-dev and build again",
      prefix);
#endif
}

int64_t spt_tokenizer_vocab_size(const spt_tokenizer *tokenizer) {
  return tokenizer->vocab_size;
}

int64_t spt_tokenizer_eos(const spt_tokenizer *tokenizer) {
  return tokenizer->eos;
}

const char *spt_tokenizer_name(const spt_tokenizer *tokenizer) {
  return tokenizer->name.c_str();
}

const char *spt_tokenizer_sha256(const spt_tokenizer *tokenizer) {
  return tokenizer->sha256.c_str();
}

spt_status spt_tokenizer_encode(const spt_tokenizer *tokenizer, const char *text, size_t bytes, uint32_t **ids_p,
                                size_t *capacity_p, size_t *count_p) {
  return guarded([&] { return encode(tokenizer, text, bytes, ids_p, capacity_p, count_p); });
}

spt_status spt_tokenizer_decode(const spt_tokenizer *tokenizer, const uint32_t *ids, size_t count, char **text_p) {
  return guarded([&] { return decode(tokenizer, ids, count, text_p); });
}
