/* Keys and values of a job as TOML text: what the reader (job_toml.cpp) and the printer (job_text.cpp) share. C++ only.
 */
#ifndef SPT_JOB_TEXT_HPP
#define SPT_JOB_TEXT_HPP

#include <string>
#include <vector>

extern "C" {
#include "core/config_keys.h"
}

namespace spt_job {

/* The table of keys. */
std::vector<const spt_key *> all_keys();
/* "table.key", and "[table] key" as in messages. */
std::string name_of(const spt_key &key);
std::string label_of(const spt_key &key);
/* A TOML basic string. */
std::string quoted(const std::string &text);
/* A key's value as TOML text that reads back as exactly this value. */
std::string value_text(const spt_config *config, const spt_key &key);

/* A key's place in a configuration. */
template <class T> const T &at(const spt_config *config, const spt_key &key) {
  return *reinterpret_cast<const T *>(reinterpret_cast<const char *>(config) + key.offset);
}
template <class T> T &at(spt_config *config, const spt_key &key) {
  return *reinterpret_cast<T *>(reinterpret_cast<char *>(config) + key.offset);
}

} // namespace spt_job

#endif
