// Where the library is header-only, its debug assertions abort on some malformed keys that its parser then reports as
// an error.
#define TOML_ASSERT(expression) static_cast<void>(0)
#include <toml++/toml.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

extern "C" { // core's headers are C
#include "core/config_keys.h"
#include "core/flops_match.h"
#include "io/job_toml.h"
}
#include "io/job_text.hpp"

using namespace spt_job;

namespace {

/* An error on its way to the C boundary, where it becomes the thread's last error. */
struct job_error {
  spt_status code;
  std::string message;
};

[[noreturn]] void fail(const std::string &message) {
  throw job_error{SPT_ERR_USAGE, message};
}

/* ---- suggestions ---- */

/* Edits (insert, delete, replace, swap neighbours) from a to b. */
size_t edit_distance(const std::string &a, const std::string &b) {
  std::vector<std::vector<size_t>> d(a.size() + 1, std::vector<size_t>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); i++) d[i][0] = i;
  for (size_t j = 0; j <= b.size(); j++) d[0][j] = j;
  for (size_t i = 1; i <= a.size(); i++) {
    for (size_t j = 1; j <= b.size(); j++) {
      d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
    }
  }
  return d[a.size()][b.size()];
}

/* The known word nearest to `word`, "" when none is like it. */
std::string nearest(const std::string &word, const std::vector<std::string> &known) {
  if (word.size() > 64) return "";
  std::string best;
  size_t best_distance = SIZE_MAX;
  for (const std::string &candidate : known) {
    const size_t distance = edit_distance(word, candidate);
    if (distance < best_distance && 2 * distance <= std::max(word.size(), candidate.size()))
      best = candidate, best_distance = distance;
  }
  return best;
}

std::string join(const std::vector<std::string> &words) {
  std::string out;
  for (const std::string &word : words) out += (out.empty() ? "" : ", ") + word;
  return out;
}

std::string suggestion(const std::string &word, const std::vector<std::string> &known) {
  const std::string best = nearest(word, known);
  return (best.empty() ? "" : " (did you mean " + best + "?)") + "; known: " + join(known);
}

std::vector<std::string> enum_names(const spt_key &key) {
  std::vector<std::string> names;
  std::stringstream list(key.values);
  for (std::string name; std::getline(list, name, '|');) names.push_back(name);
  return names;
}

[[noreturn]] void unknown_table(const std::string &where, const std::string &table) {
  std::vector<std::string> tables;
  for (const spt_key *key : all_keys()) {
    if (tables.empty() || tables.back() != key->table) tables.push_back(key->table);
  }
  fail(where + ": unknown table [" + table + "]" + suggestion(table, tables));
}

[[noreturn]] void unknown_key(const std::string &where, const std::string &table, const std::string &word) {
  std::vector<std::string> known;
  std::string elsewhere;
  for (const spt_key *key : all_keys()) {
    if (table == key->table) known.push_back(key->key);
    if (word == key->key && elsewhere.empty()) elsewhere = label_of(*key);
  }
  if (known.empty()) unknown_table(where, table);
  const std::string unknown = where + ": unknown key [" + table + "] " + word, near = nearest(word, known);
  // A key of another table's is more likely misplaced than misspelt.
  if (!elsewhere.empty() && (near.empty() || edit_distance(word, near) > 1))
    fail(unknown + " (did you mean " + elsewhere + "?); known: " + join(known));
  fail(unknown + suggestion(word, known));
}

/* ---- reading ---- */

const char *type_name(const spt_key &key) {
  switch (key.type) {
  case SPT_KEY_TEXT: return "a string in quotes";
  case SPT_KEY_PATH: return "a path in quotes";
  case SPT_KEY_GLOBS: return "a string or a list of strings";
  case SPT_KEY_INT:
  case SPT_KEY_SEED: return "an integer";
  case SPT_KEY_REAL: return "a number";
  case SPT_KEY_REALS: return "a list of numbers";
  case SPT_KEY_BOOL: return "true or false";
  case SPT_KEY_ENUM: return "a name in quotes";
  }
  return "";
}

/* False for text that TOML cannot hold, i.e. that is no UTF-8. */
bool reads_back(const std::string &text) {
  try {
    return *toml::parse("text = " + quoted(text))["text"].value<std::string>() == text;
  } catch (const toml::parse_error &) {
    return false;
  }
}

/* What is being filled, and where each key's value came from. */
struct loader {
  spt_config *config;
  std::filesystem::path folder;
  std::map<std::string, std::string> where; /* "model.hidden" → "job.toml:12:5" */

  std::string prefix(const spt_key &key, const std::string &place) const { return place + ": " + label_of(key); }

  void copy(const spt_key &key, const std::string &place, const std::string &value, char *target, size_t size) const {
    if (value.find('\0') != std::string::npos) fail(prefix(key, place) + ": must not hold a NUL character");
    if (!reads_back(value)) fail(prefix(key, place) + ": must be UTF-8");
    if (value.size() >= size)
      fail(prefix(key, place) + " = " + quoted(value.substr(0, 40) + "...") + ": is longer than " +
           std::to_string(size - 1) + " bytes");
    std::memset(target, 0, size); // equal configurations are equal bytes
    std::memcpy(target, value.data(), value.size());
  }

  /* Relative to the job file. With `glob`, pattern characters in the folder's own name are escaped. */
  std::string resolve(const std::string &path, bool glob) const {
    if (path.empty() || path[0] == '/') return path;
    std::string base = folder.string();
    if (glob) {
      std::string escaped;
      for (const char c : base) {
        if (std::strchr("*?[]\\", c)) escaped += '\\';
        escaped += c;
      }
      base = escaped;
    }
    return (std::filesystem::path(base) / path).lexically_normal().string();
  }

  void set_globs(const spt_key &key, const std::string &place, const toml::node &node) {
    std::vector<std::string> patterns;
    if (const auto *text = node.as_string()) {
      patterns.push_back(text->get());
    } else if (const auto *list = node.as_array()) {
      for (const toml::node &entry : *list) {
        if (!entry.is_string()) fail(prefix(key, place) + ": must be " + type_name(key));
        patterns.push_back(entry.as_string()->get());
      }
    } else {
      fail(prefix(key, place) + ": must be " + type_name(key));
    }
    if (patterns.size() > SPT_GLOBS_MAX)
      fail(prefix(key, place) + ": has " + std::to_string(patterns.size()) + " patterns; at most " +
           std::to_string(SPT_GLOBS_MAX) + " (use wildcards)");
    spt_globs globs;
    std::memset(&globs, 0, sizeof globs);
    for (const std::string &pattern : patterns) {
      if (pattern.empty()) fail(prefix(key, place) + ": a pattern must not be empty");
      copy(key, place, resolve(pattern, true), globs.pattern[globs.count++], SPT_PATH_MAX);
    }
    at<spt_globs>(config, key) = globs;
  }

  void set_reals(const spt_key &key, const std::string &place, const toml::node &node) {
    const size_t count = key.size / sizeof(double);
    const auto *list = node.as_array();
    if (!list || list->size() != count) fail(prefix(key, place) + ": must be a list of " + std::to_string(count) + " numbers");
    for (size_t i = 0; i < count; i++) {
      if (!(*list)[i].is_number()) fail(prefix(key, place) + ": must be a list of " + std::to_string(count) + " numbers");
      (&at<double>(config, key))[i] = *(*list)[i].value<double>();
    }
  }

  void set(const spt_key &key, const std::string &place, const toml::node &node) {
    const auto wrong_type = [&] {
      std::stringstream kind;
      kind << node.type();
      const auto *text = node.as_string();
      fail(prefix(key, place) + ": must be " + type_name(key) + ", not " + (text ? quoted(text->get()) : kind.str()));
    };
    switch (key.type) {
    case SPT_KEY_GLOBS: set_globs(key, place, node); break;
    case SPT_KEY_REALS: set_reals(key, place, node); break;
    case SPT_KEY_TEXT:
    case SPT_KEY_PATH: {
      if (!node.is_string()) wrong_type();
      const std::string value = node.as_string()->get();
      copy(key, place, key.type == SPT_KEY_PATH ? resolve(value, false) : value, &at<char>(config, key), key.size);
      break;
    }
    case SPT_KEY_INT:
    case SPT_KEY_SEED:
      if (!node.is_integer()) wrong_type();
      at<int64_t>(config, key) = node.as_integer()->get();
      break;
    case SPT_KEY_REAL:
      if (!node.is_number()) wrong_type();
      at<double>(config, key) = *node.value<double>();
      break;
    case SPT_KEY_BOOL:
      if (!node.is_boolean()) wrong_type();
      at<bool>(config, key) = node.as_boolean()->get();
      break;
    case SPT_KEY_ENUM: {
      if (!node.is_string()) wrong_type();
      const std::string name = node.as_string()->get();
      const int value = spt_key_enum_value(&key, name.c_str());
      if (value < 0 || name.size() != std::strlen(name.c_str()))
        fail(prefix(key, place) + " = " + quoted(name) + ": no such name" + suggestion(name, enum_names(key)));
      at<int>(config, key) = value;
      break;
    }
    }
    where[name_of(key)] = place;
    // 0 is the inside's word for "not given"; written, it is out of range (which steps = 0 would not be seen to be).
    if (key.type != SPT_KEY_INT || at<int64_t>(config, key) != 0) return;
    if (spt_key_check(&key, config) != SPT_OK) fail(place + ": " + spt_error_message());
  }
};

std::string place_of(const std::string &origin, const toml::source_region &region) {
  return origin + ":" + std::to_string(region.begin.line) + ":" + std::to_string(region.begin.column);
}

/* One key's value, ready to be set. */
struct assignment {
  const spt_key *key;
  std::string place;
  toml::array value; /* of one element */
};

/* "optimizer" and "optimizer.adamw" are. */
bool is_table_name(const std::string &path) {
  const auto keys = all_keys();
  return std::any_of(keys.begin(), keys.end(), [&](const spt_key *key) { return path == key->table; });
}

void collect_table(const toml::table &table, const std::string &name, const std::string &origin,
                   std::vector<assignment> &out) {
  for (auto &&[word, node] : table) {
    const std::string place = place_of(origin, word.source()),
                      path = (name.empty() ? "" : name + ".") + std::string(word.str());
    if (const spt_key *key = spt_config_find_key(path.c_str())) {
      assignment found{key, place, {}};
      found.value.push_back(node);
      out.push_back(std::move(found));
    } else if (is_table_name(path)) {
      if (!node.is_table()) fail(place + ": [" + path + "] must be a table of keys");
      collect_table(*node.as_table(), path, origin, out);
    } else if (name.empty()) {
      unknown_table(place, path);
    } else {
      unknown_key(place, name, std::string(word.str()));
    }
  }
}

/* "table.key=value": a TOML value; a bare word, and anything given to a key that holds text, is a string. */
assignment parse_set(const std::string &argument) {
  const std::string place = "--set " + argument;
  const size_t equals = argument.find('=');
  if (equals == std::string::npos) fail(place + ": must be table.key=value, e.g. --set optimizer.lr=0.02");
  const std::string name = argument.substr(0, equals), text = argument.substr(equals + 1);
  const spt_key *key = spt_config_find_key(name.c_str());
  if (!key) {
    const size_t dot = name.rfind('.');
    if (dot == std::string::npos) fail(place + ": must be table.key=value, e.g. --set optimizer.lr=0.02");
    unknown_key(place, name.substr(0, dot), name.substr(dot + 1));
  }
  assignment found{key, place, {}};
  const bool holds_text =
      key->type == SPT_KEY_TEXT || key->type == SPT_KEY_PATH || key->type == SPT_KEY_GLOBS || key->type == SPT_KEY_ENUM;
  try {
    toml::table table = toml::parse("value = " + text);
    toml::node *value = table.get("value");
    if (table.size() == 1 && value && (!holds_text || value->is_string() || value->is_array())) {
      found.value.push_back(*value);
      return found;
    }
  } catch (const toml::parse_error &) { // a bare word
  }
  found.value.push_back(text);
  return found;
}

bool assigns(const std::vector<assignment> &list, const char *name) {
  const spt_key *key = spt_config_find_key(name);
  return std::any_of(list.begin(), list.end(), [&](const assignment &a) { return a.key == key; });
}

/* What is given by --set replaces the file's other way of saying the same: a preset the file's shape; steps, tokens and
 * match_flops each other. */
void drop_replaced(const std::vector<assignment> &sets, std::vector<assignment> &file) {
  std::vector<const char *> replaced;
  if (assigns(sets, "model.preset"))
    replaced = {"model.preset", "model.hidden", "model.layers", "model.heads", "model.kv_heads", "model.ffn"};
  const std::vector<const char *> lengths = {"schedule.steps", "schedule.tokens", "schedule.match_flops"};
  const auto set_here = [&](const char *name) { return assigns(sets, name); };
  if (std::any_of(lengths.begin(), lengths.end(), set_here))
    for (const char *name : lengths)
      if (!set_here(name)) replaced.push_back(name);
  const auto is_replaced = [&](const assignment &a) {
    return std::any_of(replaced.begin(), replaced.end(),
                       [&](const char *name) { return a.key == spt_config_find_key(name); });
  };
  file.erase(std::remove_if(file.begin(), file.end(), is_replaced), file.end());
}

/* Core's messages begin with "[table] key": puts the place where that key was given before them. */
void check(const loader &load, const std::string &origin, spt_status status) {
  if (status == SPT_OK) return;
  const std::string message = spt_error_message();
  const size_t close = message.find("] "),
               end = message.find_first_of(" :", close == std::string::npos ? 0 : close + 2);
  std::string place = origin;
  if (message[0] == '[' && close != std::string::npos && end != std::string::npos) {
    const auto found = load.where.find(message.substr(1, close - 1) + "." + message.substr(close + 2, end - close - 2));
    if (found != load.where.end()) place = found->second;
  }
  throw job_error{status, place + ": " + message};
}

/* Defaults that depend on other keys, for those that were not given. */
void fill_dependent(loader &load, const std::string &origin) {
  spt_config *config = load.config;
  const auto given = [&](const char *name) { return load.where.count(name) != 0; };
  if (!given("run.name")) {
    const std::string stem = std::filesystem::path(origin).stem().string();
    load.copy(*spt_config_find_key("run.name"), origin, stem.empty() ? "run" : stem, config->run.name,
              sizeof config->run.name);
  }
  if (!given("run.output"))
    load.copy(*spt_config_find_key("run.output"), origin, load.resolve(std::string("runs/") + config->run.name, false),
              config->run.output, sizeof config->run.output);
  if (!given("data.seed")) config->data.seed = config->run.seed;
  if (!given("optimizer.method") && config->model.parameterization == SPT_DENSE)
    config->optimizer.method = SPT_METHOD_ADAMW;
}

std::string read_file(const char *path);
void parse_job(const std::string &text, const std::string &origin, const char *folder, const std::vector<std::string> &sets,
               std::vector<std::string> &matching, spt_config *config);

/* The steps that spend another job's FLOPs. matching: the jobs whose steps are being found, to see circles. */
void match_flops(loader &load, std::vector<std::string> &matching) {
  spt_config *config = load.config;
  const spt_key &key = *spt_config_find_key("schedule.match_flops");
  const std::string path = config->schedule.match_flops, place = load.where[name_of(key)], label = load.prefix(key, place);
  if (path.empty()) fail(label + ": must name a job file");
  std::error_code ignored;
  const std::string real = std::filesystem::weakly_canonical(path, ignored).string();
  if (std::find(matching.begin(), matching.end(), real) != matching.end())
    fail(label + " = " + quoted(path) + ": that job's own match_flops leads back to it; give one of them steps");
  const auto other = std::make_unique<spt_config>(), own = std::make_unique<spt_config>(*config);
  matching.push_back(real);
  try {
    parse_job(read_file(path.c_str()), path, std::filesystem::path(path).parent_path().c_str(), {}, matching, other.get());
  } catch (const job_error &error) {
    throw job_error{error.code, label + ": " + error.message};
  }
  matching.pop_back();
  own->schedule.steps = 1;
  own->schedule.tokens = 0;
  check(load, place, spt_config_complete(own.get()));
  check(load, place, spt_flops_match(other.get(), own.get(), config->schedule.matched));
  const int64_t steps = config->schedule.matched[config->schedule.match_count];
  if (steps < 1) fail(label + " = " + quoted(path) + ": its FLOPs are fewer than one step of this job's");
  if (config->schedule.tokens > 0 || (config->schedule.steps != 0 && config->schedule.steps != steps))
    fail(label + " = " + quoted(path) + ": gives " + std::to_string(steps) + " steps; leave [schedule] steps and tokens out, or match_flops");
  config->schedule.steps = steps;
}

void parse_job(const std::string &text, const std::string &origin, const char *folder, const std::vector<std::string> &sets,
               std::vector<std::string> &matching, spt_config *config) {
  spt_config_defaults(config);
  loader load{config, std::filesystem::absolute(folder && *folder ? folder : ".").lexically_normal(), {}};
  std::vector<assignment> file, line;
  try {
    collect_table(toml::parse(text, origin), "", origin, file);
  } catch (const toml::parse_error &error) {
    fail(place_of(origin, error.source()) + ": " + std::string(error.description()));
  }
  for (const std::string &argument : sets) line.push_back(parse_set(argument));
  drop_replaced(line, file);
  std::move(line.begin(), line.end(), std::back_inserter(file));
  // A preset comes before the keys that override it, wherever it stands.
  const auto is_preset = [](const assignment &a) { return std::strcmp(a.key->key, "preset") == 0; };
  std::stable_partition(file.begin(), file.end(), is_preset);
  for (const assignment &given : file) {
    load.set(*given.key, given.place, given.value[0]);
    if (is_preset(given) && config->model.preset[0])
      check(load, origin, spt_config_apply_preset(std::string(config->model.preset).c_str(), &config->model));
  }
  fill_dependent(load, origin);
  if (load.where.count("schedule.match_flops")) match_flops(load, matching);
  check(load, origin, spt_config_complete(config));
}

std::string read_file(const char *path) {
  std::error_code ignored;
  if (std::filesystem::is_fifo(path, ignored)) fail(std::string(path) + ": is a pipe, which may never end; give a regular file");
  const std::unique_ptr<std::FILE, int (*)(std::FILE *)> file(std::fopen(path, "rb"), std::fclose);
  if (!file) fail(std::string(path) + ": cannot open the job file: " + std::strerror(errno));
  std::string text(1 << 20, '\0');
  const size_t size = std::fread(&text[0], 1, text.size(), file.get());
  if (std::ferror(file.get())) fail(std::string(path) + ": cannot read the job file: " + std::strerror(errno));
  if (size == text.size()) fail(std::string(path) + ": is larger than a megabyte: no job file");
  text.resize(size);
  if (text.find('\0') != std::string::npos) fail(std::string(path) + ": holds a NUL byte: no job file");
  return text;
}

/* Runs `body`, which may throw, and turns what it throws into the thread's last error, in one line. */
template <class Body> spt_status guarded(const char *origin, Body body) {
  spt_status code = SPT_ERR_USAGE;
  std::string message;
  try {
    body();
    return SPT_OK;
  } catch (const job_error &error) {
    code = error.code;
    message = error.message;
  } catch (const std::bad_alloc &) {
    return SPT_FAIL(SPT_ERR_RESOURCE, "%s: out of memory while reading the job file", origin);
  } catch (const std::exception &error) {
    message = std::string(origin) + ": " + error.what();
  }
  for (char &c : message) c = static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  return SPT_FAIL(code, "%s", message.c_str());
}

} // namespace

extern "C" spt_status spt_job_parse(const char *text, const char *origin, const char *folder, const char *const *sets,
                                    int set_count, spt_config *config_p) {
  return guarded(origin, [&] {
    const auto config = std::make_unique<spt_config>();
    std::vector<std::string> matching;
    parse_job(text, origin, folder, std::vector<std::string>(sets, sets + set_count), matching, config.get());
    std::memcpy(config_p, config.get(), sizeof *config_p);
  });
}

extern "C" spt_status spt_job_load(const char *path, const char *const *sets, int set_count, spt_config *config_p) {
  return guarded(path, [&] {
    const std::string text = read_file(path);
    const std::string folder = std::filesystem::absolute(path).parent_path().string();
    const auto config = std::make_unique<spt_config>();
    std::error_code ignored;
    std::vector<std::string> matching = {std::filesystem::weakly_canonical(path, ignored).string()};
    parse_job(text, path, folder.c_str(), std::vector<std::string>(sets, sets + set_count), matching, config.get());
    std::memcpy(config_p, config.get(), sizeof *config_p);
  });
}
