// Recording and replaying programs. All pointers of a program are fixed and every number that changes between runs lives
// in device memory, so one recording serves all later runs.
#include <exception>

#include "core/error.h"
#include "cuda/cuda_backend.h"

namespace q4::gpu {

bool CudaBackend::begin_run(uint64_t program, bool profiled) {
  use_device();
  discard_put_off();
  mode_ = Mode::plain;
  if (profiled) return true;
  Recording& recording = recordings_[program];
  if (recording.graph || recording.chain.launch) {
    mode_ = Mode::replaying;
    return false;
  }
  if (recording.runs > 0) {
    scripts_.clear(), last_chain_ = {};
    Q4_CHECK(cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal));
    mode_ = Mode::recording;
  }
  return true;
}

void CudaBackend::end_run(uint64_t program) {
  if (std::current_exception()) discard_put_off();
  const cudaStream_t stream = stream_.get();
  try {
    (void)this->stream();
  } catch (...) {
    // What was put off could not be launched: a recording must not stay open for it.
    discard_put_off();
    if (std::exchange(mode_, Mode::plain) == Mode::recording) {
      Graph unfinished;
      (void)cudaStreamEndCapture(stream, unfinished.out());
      (void)cudaGetLastError();
    }
    throw;
  }
  const Mode mode = std::exchange(mode_, Mode::plain);
  Recording& recording = recordings_[program];
  if (mode == Mode::recording) {
    Graph graph;
    const cudaError_t ended = cudaStreamEndCapture(stream, graph.out());
    // Called from a handler, the run was cancelled or failed half way: nothing was run, nothing may be kept.
    if (std::current_exception()) {
      (void)cudaGetLastError();
      return;
    }
    check(ended, "cudaStreamEndCapture");
    for (Script& script : scripts_) {
      Q4_CHECK(cudaMemcpyAsync(script.memory.get(), script.contents.data(), script.contents.size(),
                               cudaMemcpyHostToDevice, stream));
      decode_announce(script.maps, script.mapped, machine_, stream);
      script.contents = {};
    }
    recording.scripts = std::exchange(scripts_, {});
    size_t nodes = 0;
    Q4_CHECK(cudaGraphGetNodes(graph.get(), nullptr, &nodes));
    DecodeLaunch chain = std::exchange(last_chain_, {});
    if (nodes == 1 && chain.launch)
      recording.chain = std::move(chain);
    else
      Q4_CHECK(cudaGraphInstantiate(recording.graph.out(), graph.get(), 0));
  }
  if (mode == Mode::plain) {
    if (!std::current_exception()) ++recording.runs;
    return;
  }
  for (const Script& script : recording.scripts) use_tags(script.phases);
  if (recording.chain.launch)
    run_recorded(recording.chain);
  else
    Q4_CHECK(cudaGraphLaunch(recording.graph.get(), stream));
}

void CudaBackend::forget(uint64_t program) noexcept {
  const auto found = recordings_.find(program);
  if (found == recordings_.end()) return;
  (void)cudaSetDevice(index_);
  (void)cudaStreamSynchronize(stream_.get());
  recordings_.erase(found);
}

}  // namespace q4::gpu
