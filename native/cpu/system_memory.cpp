#include "cpu/system_memory.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace q4 {
namespace {

// The number after `key` in a file of "Key:   123 kB" lines, in bytes; -1 when there is none.
int64_t kilobytes_of(const char* path, const char* key) {
  std::FILE* file = std::fopen(path, "re");
  if (!file) return -1;
  char line[256];
  int64_t bytes = -1;
  const size_t length = std::strlen(key);
  while (std::fgets(line, sizeof line, file)) {
    long long value = 0;
    if (std::strncmp(line, key, length) == 0 && std::sscanf(line + length, ": %lld", &value) == 1) bytes = value * 1024;
  }
  std::fclose(file);
  return bytes;
}

// A file that holds one number; -1 when it is missing or says "max".
int64_t number_in(const std::string& path) {
  std::FILE* file = std::fopen(path.c_str(), "re");
  if (!file) return -1;
  long long value = -1;
  if (std::fscanf(file, "%lld", &value) != 1) value = -1;
  std::fclose(file);
  return value;
}

struct Limit {
  int64_t limit = -1, used = -1;
};

// The control group's limit: version 2 (walking up to the root), else version 1.
Limit control_group() {
  Limit tightest;
  std::FILE* file = std::fopen("/proc/self/cgroup", "re");
  if (!file) return tightest;
  char line[4096];
  while (std::fgets(line, sizeof line, file)) {
    line[std::strcspn(line, "\n")] = 0;
    std::string base;
    const char *limit_name = "/memory.max", *used_name = "/memory.current";
    std::string path;
    if (std::strncmp(line, "0::", 3) == 0) {
      base = "/sys/fs/cgroup";
      path = line + 3;
    } else if (const char* memory = std::strstr(line, ":memory:")) {
      base = "/sys/fs/cgroup/memory";
      path = memory + 8;
      limit_name = "/memory.limit_in_bytes", used_name = "/memory.usage_in_bytes";
    } else {
      continue;
    }
    if (path == "/") path.clear();
    for (;;) {
      const int64_t limit = number_in(base + path + limit_name), used = number_in(base + path + used_name);
      const bool tighter = tightest.limit < 0 || limit - used < tightest.limit - tightest.used;
      if (limit > 0 && used >= 0 && tighter) tightest = {limit, used};
      if (path.empty()) break;
      path.resize(path.find_last_of('/') == std::string::npos ? 0 : path.find_last_of('/'));
    }
  }
  std::fclose(file);
  return tightest;
}

}  // namespace

SystemMemory system_memory() {
  SystemMemory memory;
  const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
  if (pages > 0 && page > 0) memory.total_bytes = int64_t{pages} * page;
  const int64_t available = kilobytes_of("/proc/meminfo", "MemAvailable");
  memory.available_bytes = available >= 0 ? available : memory.total_bytes;
  const Limit group = control_group();
  if (group.limit > 0 && group.limit < memory.total_bytes) {
    memory.total_bytes = group.limit;
    memory.available_bytes = std::min(memory.available_bytes, std::max<int64_t>(0, group.limit - group.used));
  }
  return memory;
}

int64_t resident_bytes() { return std::max<int64_t>(0, kilobytes_of("/proc/self/status", "RssAnon")); }

const char* cpu_name() {
  static const std::string name = [] {
    std::string text;
#if defined(__x86_64__)
    unsigned words[12] = {};
    if (__get_cpuid_max(0x80000000u, nullptr) >= 0x80000004u) {
      for (unsigned i = 0; i < 3; ++i)
        __get_cpuid(0x80000002u + i, &words[4 * i], &words[4 * i + 1], &words[4 * i + 2], &words[4 * i + 3]);
      text.assign(reinterpret_cast<const char*>(words), sizeof words);
      text.resize(std::strlen(text.c_str()));
      const size_t first = text.find_first_not_of(' '), last = text.find_last_not_of(' ');
      text = first == std::string::npos ? "" : text.substr(first, last - first + 1);
    }
#endif
    return text.empty() ? std::string("CPU") : text;
  }();
  return name.c_str();
}

}  // namespace q4
