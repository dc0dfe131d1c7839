// A CUDA device that is pretended: a torch that was built without CUDA gets tensors that say cuda:0 and hold numbers.
//
// Their bytes lie in host memory and each operator runs its CPU kernel on them. What a GPU refuses is refused (operands
// of two devices, a generator of the other device, more memory than there is); what makes the host wait and what is
// copied is reported to a listener; copies that a GPU makes later are made as late as it may, so that a missing wait
// gives wrong numbers. `device.py` is the Python side. Written against torch 2.13; it uses interfaces that may change.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/EmptyTensor.h>
#include <ATen/NativeFunctions.h>
#include <ATen/core/CachingHostAllocator.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/Resize.h>
#include <ATen/native/transformers/sdp_utils_cpp.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <unordered_map>

using at::CUDAHooksRegistry;
using at::RegistererCUDAHooksRegistry;
using c10::DeviceIndex;
using c10::IValue;

namespace {

const at::Device GPU(c10::DeviceType::CUDA, 0);

// -- reports ----------------------------------------------------------------------------------------------------------

enum Kind { WAIT, COPY, REFUSED };
using Listener = void (*)(int kind, const char* what, size_t bytes);
std::atomic<Listener> listener{nullptr};

void report(Kind kind, const std::string& what, size_t bytes = 0) {
  if (auto listening = listener.load()) listening(kind, what.c_str(), bytes);
}

[[noreturn]] void refuse(const std::string& what) {
  report(REFUSED, what);
  TORCH_CHECK(false, what);
}

// -- memory -----------------------------------------------------------------------------------------------------------

// Bytes in use now and at most, of the device or of pinned host memory.
struct Meter {
  std::mutex mutex;
  std::map<const char*, std::pair<size_t, size_t>> blocks;  // start: length, bytes that are counted for it
  size_t now = 0, peak = 0;

  void add(const void* start, size_t length, size_t counted) {
    std::lock_guard<std::mutex> guard(mutex);
    blocks[static_cast<const char*>(start)] = {length, counted};
    now += counted;
    peak = std::max(peak, now);
  }
  bool remove(const void* start) {
    std::lock_guard<std::mutex> guard(mutex);
    auto found = blocks.find(static_cast<const char*>(start));
    if (found == blocks.end()) return false;
    now -= found->second.second;
    blocks.erase(found);
    return true;
  }
  bool has(const void* pointer) {
    std::lock_guard<std::mutex> guard(mutex);
    auto after = blocks.upper_bound(static_cast<const char*>(pointer));
    if (after == blocks.begin()) return false;
    const auto& [start, size] = *std::prev(after);
    return static_cast<const char*>(pointer) < start + std::max<size_t>(size.first, 1);
  }
};
Meter on_device, pinned;
std::atomic<size_t> capacity{0};  // bytes of the device; 0 is without end

void free_on_device(void* start) {
  if (start && on_device.remove(start)) std::free(start);
}

struct DeviceMemory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    if (!bytes) return {nullptr, nullptr, &free_on_device, GPU};
    const size_t counted = (bytes + 511) / 512 * 512;  // as torch's allocator for CUDA counts
    TORCH_CHECK_WITH(OutOfMemoryError, !capacity || on_device.now + counted <= capacity,
                     "CUDA out of memory. Tried to allocate ", counted, " bytes on a pretended GPU that has ",
                     capacity.load(), " bytes, of which ", on_device.now, " are in use.");
    void* start = nullptr;
    if (posix_memalign(&start, 512, counted)) throw std::bad_alloc();
    on_device.add(start, bytes, counted);
    return {start, start, &free_on_device, GPU};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &free_on_device; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};
DeviceMemory device_memory;

void free_pinned(void* start) {
  if (start && pinned.remove(start)) std::free(start);
}

struct PinnedMemory final : at::HostAllocator {
  c10::DataPtr allocate(size_t bytes) override {
    if (!bytes) return {nullptr, nullptr, &free_pinned, c10::Device(c10::kCPU)};
    size_t counted = 1;
    while (counted < bytes) counted *= 2;  // as torch's allocator of pinned memory rounds up
    void* start = nullptr;
    if (posix_memalign(&start, 4096, bytes)) throw std::bad_alloc();
    pinned.add(start, bytes, counted);
    return {start, start, &free_pinned, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &free_pinned; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
  bool record_event(void*, void*, c10::Stream) override { return true; }
  void empty_cache() override {}
  at::HostStats get_stats() override { return {}; }
  void reset_accumulated_stats() override {}
  void reset_peak_stats() override {}
};
PinnedMemory pinned_memory;

// -- streams and events -----------------------------------------------------------------------------------------------

// A queue of copies that were asked for and have not happened.
struct Queue {
  std::recursive_mutex mutex;
  std::deque<std::function<void()>> waiting;
  size_t added = 0, done = 0;

  void add(std::function<void()> copy) {
    std::lock_guard<std::recursive_mutex> guard(mutex);
    waiting.push_back(std::move(copy));
    ++added;
  }
  void run(size_t until) {
    std::lock_guard<std::recursive_mutex> guard(mutex);
    while (done < until && !waiting.empty()) {
      auto copy = std::move(waiting.front());
      waiting.pop_front();
      ++done;
      copy();
    }
  }
  void run() { run(added); }
};

constexpr int STREAMS = 64;
Queue queues[STREAMS];   // by stream; the first stream's queue holds what the host may not read yet
// pinned memory that the first stream has not filled yet, by how many copies; guarded by that queue's mutex
std::unordered_map<const void*, int> unfilled;
Queue before_next_op;    // copies of the first stream to the device: the host may not write to their source yet
std::atomic<int> streams{1};
thread_local int current_stream = 0;
std::atomic<bool> is_deaf{false};  // a mistake on purpose: no stream waits for another

struct Event {
  int stream = 0;
  size_t at = 0;
};

c10::Stream stream_of(int id) { return c10::Stream(c10::Stream::UNSAFE, GPU, id); }

// The host waits for everything on the first stream.
void host_waits(const std::string& why) {
  report(WAIT, why);
  before_next_op.run();
  queues[0].run();
}

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return c10::DeviceType::CUDA; }
  c10::Device exchangeDevice(c10::Device) const override { return GPU; }
  c10::Device getDevice() const override { return GPU; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  DeviceIndex deviceCount() const noexcept override { return 1; }
  c10::Stream getStream(c10::Device) const override { return stream_of(current_stream); }
  c10::Stream getDefaultStream(c10::Device) const override { return stream_of(0); }
  c10::Stream getNewStream(c10::Device, int) const override { return stream_of(1 + streams++ % (STREAMS - 1)); }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override { return getNewStream(device, 0); }
  c10::Stream exchangeStream(c10::Stream stream) const override {
    const int before = current_stream;
    current_stream = static_cast<int>(stream.id());
    return stream_of(before);
  }
  void record(void** event, const c10::Stream& stream, DeviceIndex, c10::EventFlag) const override {
    if (!*event) *event = new Event();
    auto* recorded = static_cast<Event*>(*event);
    recorded->stream = static_cast<int>(stream.id());
    recorded->at = queues[recorded->stream].added;
  }
  void block(void* event, const c10::Stream& stream) const override {
    if (is_deaf) return;
    const Event recorded = *static_cast<Event*>(event);
    auto wait = [recorded] { queues[recorded.stream].run(recorded.at); };
    if (stream.id()) queues[stream.id()].add(wait);
    else if (recorded.stream) wait();
  }
  bool queryEvent(void* event) const override {
    auto* recorded = static_cast<Event*>(event);
    if (recorded) queues[recorded->stream].run(recorded->at);
    return true;
  }
  void synchronizeEvent(void* event) const override {
    report(WAIT, "synchronize an event");
    auto* recorded = static_cast<Event*>(event);
    if (recorded) queues[recorded->stream].run(recorded->at);
  }
  void destroyEvent(void* event, const DeviceIndex) const noexcept override { delete static_cast<Event*>(event); }
  bool queryStream(const c10::Stream& stream) const override {
    queues[stream.id()].run();
    return true;
  }
  void synchronizeStream(const c10::Stream& stream) const override {
    if (!stream.id()) return host_waits("synchronize a stream");
    report(WAIT, "synchronize a stream");
    queues[stream.id()].run();
  }
  void synchronizeDevice(const DeviceIndex) const override {
    host_waits("synchronize the device");
    for (auto& queue : queues) queue.run();
  }
  double elapsedTime(void*, void*, const DeviceIndex) const override { return 0; }
};

// -- generators -------------------------------------------------------------------------------------------------------

// The state of a GPU's generator has another size than that of a CPU's; here by a mark at the end.
constexpr int64_t MARK = 16;

struct DeviceGenerator final : c10::GeneratorImpl {
  explicit DeviceGenerator(at::Generator drawn)
      : GeneratorImpl(GPU, c10::DispatchKeySet(c10::DispatchKey::CUDA)), inner(std::move(drawn)) {}
  void set_current_seed(uint64_t seed) override { inner.set_current_seed(seed); }
  void set_offset(uint64_t offset) override { inner.set_offset(offset); }
  uint64_t get_offset() const override { return inner.get_offset(); }
  uint64_t current_seed() const override { return inner.current_seed(); }
  uint64_t seed() override { return inner.seed(); }
  void set_state(const c10::TensorImpl& state) override {
    auto own = at::detail::getDefaultCPUGenerator().get_state().numel() + MARK;
    TORCH_CHECK(state.numel() == own, "RNG state is wrong size");
    auto bytes = at::empty({own - MARK}, at::kByte);
    std::memcpy(bytes.mutable_data_ptr(), state.data(), bytes.numel());
    inner.set_state(bytes);
  }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    return at::cat({inner.get_state(), at::zeros({MARK}, at::kByte)}).getIntrusivePtr();
  }
  DeviceGenerator* clone_impl() const override { return new DeviceGenerator(inner.clone()); }

  at::Generator inner;
};

at::Generator new_generator() { return at::make_generator<DeviceGenerator>(at::detail::createCPUGenerator()); }

at::Generator& default_generator() {
  static at::Generator only = new_generator();
  return only;
}
std::atomic<bool> hand_out_default{false};

at::Generator inner_of(const at::Generator& generator) {
  return static_cast<DeviceGenerator*>(generator.unsafeGetGeneratorImpl())->inner;
}

struct Hooks : at::CUDAHooksInterface {
  explicit Hooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  int getNumGPUs() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  DeviceIndex current_device() const override { return 0; }
  void setCurrentDevice(DeviceIndex) const override {}
  DeviceIndex exchangeDevice(DeviceIndex) const override { return 0; }
  DeviceIndex maybeExchangeDevice(DeviceIndex) const override { return 0; }
  at::Allocator* getCUDADeviceAllocator() const override { return &device_memory; }
  at::Allocator* getPinnedMemoryAllocator() const override { return &pinned_memory; }
  bool isPinnedPtr(const void* data) const override { return pinned.has(data); }
  at::Device getDeviceFromPtr(void*) const override { return GPU; }
  const at::Generator& getDefaultGenerator(DeviceIndex) const override { return default_generator(); }
  at::Generator getNewGenerator(DeviceIndex) const override {
    return hand_out_default.exchange(false) ? default_generator() : new_generator();
  }
  void deviceSynchronize(DeviceIndex) const override { Guard().synchronizeDevice(0); }
};

// -- operators --------------------------------------------------------------------------------------------------------

// A CPU tensor over the bytes of one of the device.
at::Tensor on_host(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.is_cuda()) return tensor;
  auto options = at::TensorOptions().dtype(tensor.dtype()).device(at::kCPU);
  if (!tensor.numel()) return at::empty_strided(tensor.sizes(), tensor.strides(), options);
  return at::for_blob(tensor.mutable_data_ptr(), tensor.sizes()).strides(tensor.strides()).options(options).make_tensor();
}

// What a CPU kernel returned, on the device: a view where it lies in the bytes of an operand, else a copy.
at::Tensor to_device(const at::Tensor& made, const std::vector<at::Tensor>& operands) {
  if (!made.defined() || made.is_cuda()) return made;
  char* start = static_cast<char*>(made.numel() ? made.mutable_data_ptr() : nullptr);
  for (const auto& operand : operands) {
    char* base = static_cast<char*>(operand.storage().mutable_data());
    if (!start || !base || start < base || start >= base + operand.storage().nbytes()) continue;
    auto view = at::detail::make_tensor<c10::TensorImpl>(c10::TensorImpl::VIEW, c10::Storage(operand.storage()),
                                                         operand.key_set(), made.dtype());
    view.unsafeGetTensorImpl()->set_sizes_and_strides(made.sizes(), made.strides(),
                                                      (start - base) / static_cast<int64_t>(made.element_size()));
    return view;
  }
  auto copy = at::empty_strided(made.sizes(), made.strides(), made.options().device(GPU));
  if (made.numel()) on_host(copy).copy_(made);
  return copy;
}

// What an operator is to the host, by its name.
struct Traits {
  bool indexes, waits, crosses, lists;
};

const Traits& traits_of(const c10::FunctionSchema& schema) {
  static std::mutex mutex;
  static std::unordered_map<const c10::FunctionSchema*, Traits> known;
  static const std::set<std::string> indexing = {"aten::index", "aten::index_put", "aten::index_put_",
                                                 "aten::_index_put_impl_", "aten::_unsafe_index",
                                                 "aten::_unsafe_index_put"};
  static const std::set<std::string> waiting = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select",
                                                "aten::equal", "aten::_unique2", "aten::unique_dim",
                                                "aten::unique_consecutive"};
  static const std::set<std::string> crossing = {"aten::set_", "aten::is_same_size",
                                                 "aten::_has_compatible_shallow_copy_type", "aten::_foreach_copy_"};
  std::lock_guard<std::mutex> guard(mutex);
  auto found = known.find(&schema);
  if (found == known.end()) {
    const auto& name = schema.name();
    // one tensor that says how often each is repeated; with `output_size` its sum need not be read
    const bool repeats = name == "aten::repeat_interleave";
    found = known.emplace(&schema, Traits{indexing.count(name) > 0, waiting.count(name) > 0 || repeats,
                                          crossing.count(name) > 0, name.rfind("aten::_foreach", 0) == 0}).first;
  }
  return found->second;
}

bool is_on_host(const at::Tensor& tensor) { return tensor.defined() && tensor.is_cpu() && tensor.dim() > 0; }

// Refuse operands of two devices; 0-dimensional numbers on the host are legal, and indices there make the host wait.
void check_devices(const c10::FunctionSchema& schema, const c10::ArrayRef<IValue>& operands, const Traits& traits) {
  if (traits.crosses) return;
  bool device = false, host = false, host_index = false, mask_index = false;
  std::vector<std::vector<at::Tensor>> lists;
  for (size_t i = 0; i < operands.size(); ++i) {
    const auto& operand = operands[i];
    if (operand.isTensor()) {
      device |= operand.toTensor().is_cuda();
      host |= is_on_host(operand.toTensor());
    } else if (operand.isTensorList()) {
      lists.push_back(operand.toTensorVector());
      if (traits.lists) continue;
      for (const auto& tensor : lists.back()) (tensor.is_cuda() ? device : host) |= tensor.is_cuda() || is_on_host(tensor);
    } else if (operand.isOptionalTensorList()) {
      for (std::optional<at::Tensor> tensor : operand.toOptionalTensorVector()) {
        if (!tensor || !tensor->defined()) continue;
        host_index |= is_on_host(*tensor);
        mask_index |= tensor->scalar_type() == at::kBool || tensor->scalar_type() == at::kByte;
      }
    }
  }
  for (size_t i = 0; traits.lists && lists.size() > 1 && i < lists[0].size(); ++i)
    for (const auto& list : lists)
      if (i < list.size() && list[i].is_cuda() != lists[0][i].is_cuda() && (list[i].dim() || lists[0][i].dim()))
        host = device = true;
  if (host && device) {
    std::string shapes;
    for (const auto& operand : operands)
      if (operand.isTensor() && operand.toTensor().defined())
        shapes += c10::str(" ", operand.toTensor().device(), operand.toTensor().sizes());
    refuse("Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu, in " +
           schema.name() + ":" + shapes);
  }
  if (traits.indexes && device && mask_index) host_waits("index by a mask");
  else if (traits.indexes && device && host_index) host_waits("index with indices on the host");
}

// Any operator, by its CPU kernel.
void by_host(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  before_next_op.run();
  const auto& schema = op.schema();
  const auto& traits = traits_of(schema);
  const size_t count = schema.arguments().size(), begin = stack->size() - count;
  const std::vector<IValue> originals(stack->begin() + static_cast<long>(begin), stack->end());
  check_devices(schema, originals, traits);
  const bool here = std::any_of(originals.begin(), originals.end(), [](const IValue& value) {
    return (value.isTensor() && value.toTensor().is_cuda()) || (value.isDevice() && value.toDevice().is_cuda());
  });
  if (traits.waits) host_waits(schema.name());

  std::vector<at::Tensor> operands, hosts;
  auto take = [&](const at::Tensor& tensor) {
    if (!tensor.defined() || !tensor.is_cuda()) return tensor;
    operands.push_back(tensor);
    hosts.push_back(on_host(tensor));
    return hosts.back();
  };
  for (size_t i = 0; i < count; ++i) {
    IValue& value = (*stack)[begin + i];
    if (value.isTensor()) {
      value = take(value.toTensor());
    } else if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& tensor : value.toTensorVector()) list.push_back(take(tensor));
      value = list;
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> list;
      for (std::optional<at::Tensor> tensor : value.toOptionalTensorVector())
        list.push_back(tensor ? std::optional<at::Tensor>(take(*tensor)) : tensor);
      value = list;
    } else if (value.isDevice() && value.toDevice().is_cuda()) {
      value = at::Device(at::kCPU);
    } else if (value.isGenerator()) {
      const bool drawn_here = value.toGenerator().device().is_cuda();
      if (drawn_here != here)
        refuse(c10::str("Expected a '", here ? "cuda" : "cpu", "' device type for generator but found '",
                        drawn_here ? "cuda" : "cpu", "' in ", schema.name()));
      if (!drawn_here) continue;
      value = inner_of(value.toGenerator());
    } else if (value.isNone() && schema.arguments()[i].name() == "generator") {
      value = inner_of(default_generator());
    }
  }
  {
    at::AutoDispatchBelowAutograd guard;
    op.callBoxed(stack);
  }
  for (size_t i = 0; i < operands.size(); ++i) {
    if (hosts[i].sizes() != operands[i].sizes()) {  // what the operator has given another size
      operands[i].resize_(hosts[i].sizes());
      on_host(operands[i]).copy_(hosts[i]);
    } else if (hosts[i].strides() != operands[i].strides()) {  // or another order in memory, such as channels last
      operands[i].unsafeGetTensorImpl()->set_sizes_and_strides(hosts[i].sizes(), hosts[i].strides());
    }
  }
  const size_t returned = schema.returns().size(), first = stack->size() - returned;
  for (size_t i = 0; i < returned; ++i) {
    IValue& value = (*stack)[first + i];
    const auto* alias = schema.returns()[i].alias_info();
    bool is_operand = false;
    for (size_t j = 0; alias && alias->isWrite() && j < count && !is_operand; ++j) {
      const auto* given = schema.arguments()[j].alias_info();
      if (given && given->beforeSets() == alias->beforeSets()) {
        value = originals[j];
        is_operand = true;
      }
    }
    if (is_operand) continue;
    if (value.isTensor()) {
      value = to_device(value.toTensor(), operands);
    } else if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& tensor : value.toTensorVector()) list.push_back(to_device(tensor, operands));
      value = list;
    }
  }
}

// Does a copy that has not happened write to this memory?
bool is_unfilled(const void* start) {
  std::lock_guard<std::recursive_mutex> guard(queues[0].mutex);
  return unfilled.count(start);
}

// A copy within the device, to it or from it: now, or as late as a GPU may make it.
at::Tensor& copy(at::Tensor& to, const at::Tensor& from, bool non_blocking) {
  if (!to.numel()) return to;
  auto write = [to, from]() mutable { on_host(to).copy_(on_host(from.expand(to.sizes()))); };
  if (to.is_cuda() && from.is_cuda()) {
    before_next_op.run();
    write();
    return to;
  }
  const auto& on_the_host = to.is_cuda() ? from : to;
  const bool is_pinned = pinned.has(on_the_host.storage().data());
  const bool is_late = non_blocking && is_pinned;
  report(COPY, c10::str(to.is_cuda() ? "to the device" : "to the host", is_pinned ? ", pinned" : ", pageable"),
         to.numel() * to.element_size());
  if (is_late && current_stream) {
    queues[current_stream].add(write);
  } else if (is_late && to.is_cuda()) {
    // the host may not read yet what the first stream copies, but that stream itself may: it keeps the order
    if (is_unfilled(from.storage().data())) queues[0].run();
    before_next_op.add(write);
  } else if (is_late) {
    before_next_op.run();
    std::lock_guard<std::recursive_mutex> guard(queues[0].mutex);
    const void* target = to.storage().data();
    ++unfilled[target];
    queues[0].add([to, target, read = on_host(from).clone()]() mutable {
      to.copy_(read.expand(to.sizes()));
      if (!--unfilled[target]) unfilled.erase(target);
    });
  } else {
    // a copy from pageable memory that need not be waited for is staged: the host goes on
    if (!non_blocking || !to.is_cuda()) host_waits(to.is_cuda() ? "copy to the device" : "copy to the host");
    else before_next_op.run();
    if (current_stream) queues[current_stream].run();
    write();
  }
  return to;
}

at::Tensor empty(at::IntArrayRef sizes, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(sizes, &device_memory, c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                   dtype.value_or(at::typeMetaToScalarType(at::get_default_dtype())), format);
}

at::Tensor empty_strided(at::IntArrayRef sizes, at::IntArrayRef strides, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(sizes, strides, &device_memory, c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                           dtype.value_or(at::typeMetaToScalarType(at::get_default_dtype())));
}

// As on a CPU: noise of the operand's own type, so that the numbers are those of a run there.
std::tuple<at::Tensor, at::Tensor> native_dropout(const at::Tensor& input, double p, std::optional<bool> train) {
  if (!train.value_or(true) || p == 0 || !input.numel()) return {input.clone(), at::ones_like(input, at::kBool)};
  auto noise = at::empty_like(input);
  noise.bernoulli_(1 - p);
  auto mask = noise.to(at::kBool);
  return {input * noise.div_(1 - p), mask};
}

at::Tensor native_dropout_backward(const at::Tensor& gradient, const at::Tensor& mask, double scale) {
  return gradient * mask.to(gradient.scalar_type()).mul_(scale);
}

// -- attention: the kernel that a CPU chooses, under the name of one that a GPU has ------------------------------------

int64_t choose_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                         const std::optional<at::Tensor>& mask, double dropout, bool causal, std::optional<double> scale,
                         bool grouped) {
  auto& context = at::globalContext();
  const bool flash = context.userEnabledFlashSDP();
  if (!flash && !context.userEnabledMemEfficientSDP() && !context.userEnabledCuDNNSDP())
    return static_cast<int64_t>(at::SDPBackend::math);
  context.setSDPUseFlash(true);
  std::optional<at::Tensor> host_mask = mask ? std::optional<at::Tensor>(on_host(*mask)) : mask;
  if (host_mask) host_mask->requires_grad_(mask->requires_grad());
  const auto chosen = at::_fused_sdp_choice(on_host(query), on_host(key), on_host(value), host_mask, dropout, causal,
                                            scale, grouped);
  context.setSDPUseFlash(flash);
  return static_cast<int64_t>(chosen == static_cast<int64_t>(at::SDPBackend::flash_attention)
                                  ? at::SDPBackend::efficient_attention
                                  : at::SDPBackend::math);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> attention(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const std::optional<at::Tensor>& mask,
    bool, double dropout, bool causal, std::optional<double> scale) {
  before_next_op.run();
  std::optional<at::Tensor> host_mask = mask ? std::optional<at::Tensor>(on_host(*mask)) : mask;
  auto [out, sums] = at::_scaled_dot_product_flash_attention_for_cpu(on_host(query), on_host(key), on_host(value),
                                                                     dropout, causal, host_mask, scale);
  auto unused = at::zeros({}, at::TensorOptions().dtype(at::kLong).device(GPU));
  return {to_device(out, {}), to_device(sums, {}), unused, unused.clone()};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> attention_backward(
    const at::Tensor& gradient, const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const at::Tensor& mask, const at::Tensor& out, const at::Tensor& sums, const at::Tensor&, const at::Tensor&,
    double dropout, std::array<bool, 4>, bool causal, std::optional<double> scale) {
  before_next_op.run();
  std::optional<at::Tensor> host_mask = mask.defined() ? std::optional<at::Tensor>(on_host(mask)) : std::nullopt;
  auto [query_grad, key_grad, value_grad] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
      on_host(gradient), on_host(query), on_host(key), on_host(value), on_host(out), on_host(sums), dropout, causal,
      host_mask, scale);
  return {to_device(query_grad, {}), to_device(key_grad, {}), to_device(value_grad, {}), at::Tensor()};
}

C10_REGISTER_GUARD_IMPL(CUDA, Guard);
C10_REGISTER_TYPED_CLASS(CUDAHooksRegistry, "CUDAHooks", Hooks);
const bool registered = [] {
  c10::SetAllocator(c10::DeviceType::CUDA, &device_memory, 1);
  at::setHostAllocator(c10::DeviceType::CUDA, &pinned_memory, 1);
  return true;
}();

}  // namespace

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&by_host>()); }

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", TORCH_FN(empty));
  m.impl("empty_strided", TORCH_FN(empty_strided));
  m.impl("copy_", TORCH_FN(copy));
  m.impl("view", TORCH_FN(at::native::view));
  m.impl("as_strided", TORCH_FN(at::native::as_strided_tensorimpl));
  m.impl("_reshape_alias", TORCH_FN(at::native::_reshape_alias));
  m.impl("unfold", TORCH_FN(at::native::unfold));
  m.impl("resize_", TORCH_FN(at::native::resize_));
  m.impl("set_.source_Storage_storage_offset", TORCH_FN(at::native::set_storage_cpu_));
  m.impl("record_stream", [](at::Tensor&, c10::Stream) {});
  m.impl("native_dropout", TORCH_FN(native_dropout));
  m.impl("native_dropout_backward", TORCH_FN(native_dropout_backward));
  m.impl("_fused_sdp_choice", TORCH_FN(choose_attention));
  m.impl("_scaled_dot_product_efficient_attention", TORCH_FN(attention));
  m.impl("_scaled_dot_product_efficient_attention_backward", TORCH_FN(attention_backward));
  // what would otherwise be taken apart into steps that a CPU does not take
  m.impl("convolution", torch::CppFunction::makeFromBoxedFunction<&by_host>());
  m.impl("convolution_backward", torch::CppFunction::makeFromBoxedFunction<&by_host>());
}

// -- what device.py calls ---------------------------------------------------------------------------------------------

extern "C" {
void pretend_listen(Listener given) { listener = given; }
void pretend_capacity(size_t bytes) { capacity = bytes; }
void pretend_deaf(bool deaf) { is_deaf = deaf; }
void pretend_hand_out_default() { hand_out_default = true; }
size_t pretend_held() { return on_device.now; }
size_t pretend_peak() { return on_device.peak; }
void pretend_reset_peak() { on_device.peak = on_device.now; }
size_t pretend_pinned_peak() { return pinned.peak; }
void pretend_reset_pinned_peak() { pinned.peak = pinned.now; }
void pretend_register_host(void* start, size_t bytes) { pinned.add(start, bytes, bytes); }
void pretend_unregister_host(void* start) { pinned.remove(start); }
}
