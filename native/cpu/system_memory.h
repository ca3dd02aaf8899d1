// How much memory the machine, or the control group that this process runs in, still has.
#pragma once
#include <cstdint>

namespace q4 {

struct SystemMemory {
  int64_t total_bytes = 0, available_bytes = 0;
};
// Zeros where the system does not tell.
SystemMemory system_memory();
// Anonymous memory of this process that is really in use; 0 where the system does not tell.
int64_t resident_bytes();
// The processor's marketing name, "CPU" where it does not tell.
const char* cpu_name();

}  // namespace q4
