#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <new>

extern "C" { // core's headers are C
#include "core/decimal.h"
#include "io/job_toml.h"
}
#include "io/job_text.hpp"

using namespace spt_job;

namespace {

/* Shortest, with a point or an exponent, as TOML tells numbers from integers by it: 10000.0, 1e-8. */
std::string real_text(double value) {
  char text[32];
  spt_shortest_decimal(value, text);
  if (std::strchr(text, 'e') && std::fabs(value) >= 1 && std::fabs(value) < 1e15)
    std::snprintf(text, sizeof text, "%.0f", value);
  std::string out = text;
  const size_t exponent = out.find('e');
  if (exponent != std::string::npos && exponent + 2 < out.size() && out[exponent + 2] == '0')
    out.erase(exponent + 2, 1);
  return out.find_first_of(".en") == std::string::npos ? out + ".0" : out; // 'n' is in inf and nan
}

} // namespace

namespace spt_job {

std::string name_of(const spt_key &key) {
  return std::string(key.table) + "." + key.key;
}
std::string label_of(const spt_key &key) {
  return std::string("[") + key.table + "] " + key.key;
}

std::vector<const spt_key *> all_keys() {
  int count;
  const spt_key *keys = spt_config_keys(&count);
  std::vector<const spt_key *> list;
  for (int i = 0; i < count; i++) list.push_back(&keys[i]);
  return list;
}

std::string quoted(const std::string &text) {
  std::string out = "\"";
  for (const unsigned char c : text) {
    char escape[8];
    if (c == '"' || c == '\\') {
      out += '\\';
      out += static_cast<char>(c);
    } else if (c < 0x20 || c == 0x7f) {
      std::snprintf(escape, sizeof escape, "\\u%04X", c);
      out += escape;
    } else {
      out += static_cast<char>(c);
    }
  }
  return out + '"';
}

std::string value_text(const spt_config *config, const spt_key &key) {
  switch (key.type) {
  case SPT_KEY_TEXT:
  case SPT_KEY_PATH: return quoted(&at<char>(config, key));
  case SPT_KEY_INT: return std::to_string(at<int64_t>(config, key));
  case SPT_KEY_SEED: return std::to_string(at<uint64_t>(config, key));
  case SPT_KEY_REAL: return real_text(at<double>(config, key));
  case SPT_KEY_REALS: {
    std::string out;
    for (size_t i = 0; i < key.size / sizeof(double); i++) out += (i ? ", " : "[") + real_text((&at<double>(config, key))[i]);
    return out + "]";
  }
  case SPT_KEY_BOOL: return at<bool>(config, key) ? "true" : "false";
  case SPT_KEY_ENUM: {
    char name[32];
    spt_key_enum_name(&key, at<int>(config, key), name);
    return quoted(name);
  }
  case SPT_KEY_GLOBS: {
    const spt_globs &globs = at<spt_globs>(config, key);
    std::string out = "[";
    for (int i = 0; i < globs.count; i++) out += (i ? ", " : "") + quoted(globs.pattern[i]);
    return out + "]";
  }
  }
  return "";
}

} // namespace spt_job

extern "C" char *spt_job_print(const spt_config *config) {
  try {
    std::string out, table;
    for (const spt_key *key : all_keys()) {
      const std::string name = name_of(*key);
      if (name == "model.preset" && !config->model.preset[0]) continue;
      // What another job's FLOPs come to is in the steps: a job that is kept does not depend on the other's file.
      if (name == "schedule.match_flops" || name == "schedule.match_count") continue;
      // Steps follow from tokens: one of the two is enough, and only one may be changed later.
      if (name == (config->schedule.tokens > 0 ? "schedule.steps" : "schedule.tokens")) continue;
      if (table != key->table) out += (out.empty() ? "[" : "\n[") + (table = key->table) + "]\n";
      out += std::string(key->key) + " = " + value_text(config, *key) + "\n";
    }
    return strdup(out.c_str());
  } catch (const std::bad_alloc &) {
    return nullptr;
  }
}

extern "C" void spt_job_compare(const spt_config *before, const spt_config *after, spt_job_visit visit, void *context) {
  for (const spt_key *key : all_keys()) {
    const std::string name = name_of(*key), old_text = value_text(before, *key), new_text = value_text(after, *key);
    if (old_text == new_text) continue;
    // names for values that are compared: a preset's shape, steps
    if (name == "model.preset" || name == "schedule.match_flops" || name == "schedule.match_count") continue;
    visit(context, name.c_str(), old_text.c_str(), new_text.c_str(), key->fixed ? SPT_JOB_FIXED : SPT_JOB_SAFE);
  }
}
