// Lets torch_npu be loaded beside a torch that is built with CUDA, for the tests only. Preloaded, never linked.
//
// From torch_npu 2.14 on, both register settings of their allocators in one set of names, and the second is refused. Here each of them
// gets a set of its own. The other torch builds that torch_npu is used with, those without CUDA, need none of this.
#include <string>
#include <unordered_set>

namespace c10::CachingAllocator {
struct AcceleratorAllocatorConfig {
    static std::unordered_set<std::string> &getMutableKeys();
};

std::unordered_set<std::string> &AcceleratorAllocatorConfig::getMutableKeys() { return *new std::unordered_set<std::string>; }
}  // namespace c10::CachingAllocator
