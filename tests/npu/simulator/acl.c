/* The part of the Ascend Computing Language runtime that torch_npu needs before it runs kernels, over host memory.
 *
 * Streams and events are numbers and everything is synchronous. stubs.py appends every other function that the wheel names, as a
 * function that returns 0. VITA_SIM_DEVICES and VITA_SIM_SOC set the number of devices and the chip's name.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef void *handle;

#define NO_CONTEXT 107002
#define OUT_OF_MEMORY 207001
#define DEVICE_ALIGNMENT 512
#define HOST_ALIGNMENT 64

static __thread int current_device = -1;
static intptr_t last_handle = 0x10000;
static int64_t options[256];

static int new_handle(handle *out) { *out = (handle)__sync_add_and_fetch(&last_handle, 16); return 0; }

static int allocate(handle *out, size_t bytes, size_t alignment) {
    size_t rounded = (bytes ? bytes + alignment - 1 : alignment) / alignment * alignment;
    return posix_memalign(out, alignment, rounded) ? OUT_OF_MEMORY : 0;
}

/* devices and contexts */
int aclInit(const char *path) { return 0; }
int aclrtGetDeviceCount(uint32_t *count) {
    const char *set = getenv("VITA_SIM_DEVICES");
    *count = set ? (uint32_t)atoi(set) : 8;
    return 0;
}
int aclrtGetDevice(int *device) { *device = current_device; return current_device < 0 ? NO_CONTEXT : 0; }
int aclrtSetDevice(int device) { current_device = device; return 0; }
int aclrtResetDevice(int device) { current_device = -1; return 0; }
int aclrtGetCurrentContext(handle *context) {
    *context = current_device < 0 ? 0 : (handle)(intptr_t)(0x1000 + current_device);
    return current_device < 0 ? NO_CONTEXT : 0;
}
int aclrtSetCurrentContext(handle context) { current_device = (int)((intptr_t)context - 0x1000); return 0; }
const char *aclrtGetSocName(void) {
    const char *set = getenv("VITA_SIM_SOC");
    return set ? set : "Ascend910B2";
}
int aclGetDeviceCapability(uint32_t device, int information, int64_t *value) { *value = 20; return 0; }
int aclrtDeviceCanAccessPeer(int *can, int device, int peer) { *can = 1; return 0; }
const char *aclGetRecentErrMsg(void) { return "simulated Ascend"; }

/* memory: the device's is the host's */
int aclrtMallocHost(handle *out, size_t bytes) { return allocate(out, bytes, HOST_ALIGNMENT); }
int aclrtMalloc(handle *out, size_t bytes, int policy) { return allocate(out, bytes, DEVICE_ALIGNMENT); }
int aclrtMallocAlign32(handle *out, size_t bytes, int policy) { return allocate(out, bytes, DEVICE_ALIGNMENT); }
int aclrtFree(handle pointer) { free(pointer); return 0; }
int aclrtFreeHost(handle pointer) { free(pointer); return 0; }
static long copies[16];
long vita_copies(int kind) { return copies[kind & 15]; } /* 1: to the device, 2: to the host */
int aclrtMemcpy(handle to, size_t room, handle from, size_t bytes, int kind) { copies[kind & 15]++; memcpy(to, from, bytes); return 0; }
int aclrtMemcpyAsync(handle to, size_t room, handle from, size_t bytes, int kind, handle stream) {
    copies[kind & 15]++;
    memcpy(to, from, bytes);
    return 0;
}
int aclrtMemset(handle to, size_t room, int value, size_t bytes) { memset(to, value, bytes); return 0; }
int aclrtMemsetAsync(handle to, size_t room, int value, size_t bytes, handle stream) { memset(to, value, bytes); return 0; }
int aclrtGetMemInfo(int kind, size_t *unused, size_t *total) { *unused = 60UL << 30; *total = 64UL << 30; return 0; }

/* streams and events: all work is done when the call returns */
int aclrtCreateStream(handle *stream) { return new_handle(stream); }
int aclrtCreateStreamWithConfig(handle *stream, uint32_t priority, uint32_t flag) { return new_handle(stream); }
int aclrtCreateEventExWithFlag(handle *event, uint32_t flag) { return new_handle(event); }
int aclrtCreateEventWithFlag(handle *event, uint32_t flag) { return new_handle(event); }
int aclrtStreamGetId(handle stream, int *id) { *id = (int)(intptr_t)stream; return 0; }
int aclrtStreamQuery(handle stream, int *status) { *status = 0; return 0; }
int aclrtQueryEventStatus(handle event, int *status) { *status = 1; return 0; }
int aclrtQueryEventWaitStatus(handle event, int *status) { *status = 0; return 0; }
int aclrtEventElapsedTime(float *milliseconds, handle start, handle end) { *milliseconds = 0.1f; return 0; }
int aclrtGetStreamOverflowSwitch(handle stream, uint32_t *flag) { *flag = 0; return 0; }

/* options */
int aclrtGetSysParamOpt(int option, int64_t *value) { *value = options[option & 255]; return 0; }
int aclrtSetSysParamOpt(int option, int64_t value) { options[option & 255] = value; return 0; }
int aclrtCtxSetSysParamOpt(int option, int64_t value) { options[option & 255] = value; return 0; }
size_t aclGetCompileoptSize(int option) { return 64; }
int aclGetCompileopt(int option, char *value, size_t room) { memset(value, 0, room); strcpy(value, "disable"); return 0; }

/* looked up by name when first used, so no symbol asks for them */
int aclrtSynchronizeDevice(void) { return 0; }
int aclrtSynchronizeDeviceWithTimeout(int milliseconds) { return 0; }
int aclrtSynchronizeStreamWithTimeout(handle stream, int milliseconds) { return 0; }
int aclrtDestroyStreamForce(handle stream) { return 0; }
int aclrtSetDeviceSatMode(int mode) { return 0; }
int aclrtSetOpWaitTimeout(uint32_t seconds) { return 0; }
int aclrtSetOpExecuteTimeOut(uint32_t seconds) { return 0; }
int aclrtSetStreamFailureMode(handle stream, uint64_t mode) { return 0; }
int aclrtSetStreamOverflowSwitch(handle stream, uint32_t flag) { return 0; }
int aclSetCompileopt(int option, const char *value) { return 0; }
int aclopSetCompileFlag(int flag) { return 0; }
int aclrtPeekAtLastError(int level) { return 0; }
int aclrtGetLastError(int level) { return 0; }
