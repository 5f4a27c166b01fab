/* What src/symbols.rs declares, against the vendor's headers; see headers.sh. It compiles, or something differs. */
#include <stddef.h>

#include "acl/acl.h"
#include "acl/acl_rt.h"

#define FUNCTION(name, ...) _Static_assert(__builtin_types_compatible_p(__typeof__(&name), __VA_ARGS__), #name)
#define VALUE(left, right) _Static_assert((left) == (right), #left)

FUNCTION(aclInit, int (*)(const char *));
FUNCTION(aclrtSetDevice, int (*)(int32_t));
FUNCTION(aclrtGetDeviceCount, int (*)(uint32_t *));
FUNCTION(aclrtGetMemInfo, int (*)(aclrtMemAttr, size_t *, size_t *));
FUNCTION(aclrtMalloc, int (*)(void **, size_t, aclrtMemMallocPolicy));
FUNCTION(aclrtFree, int (*)(void *));
FUNCTION(aclrtMemcpyAsync, int (*)(void *, size_t, const void *, size_t, aclrtMemcpyKind, void *));
FUNCTION(aclrtMemcpyBatchAsync, int (*)(void **, size_t *, void **, size_t *, size_t, aclrtMemcpyBatchAttr *, size_t *,
                                        size_t, size_t *, void *));
FUNCTION(aclrtCreateStream, int (*)(void **));
FUNCTION(aclrtCreateStreamWithConfig, int (*)(void **, uint32_t, uint32_t));
FUNCTION(aclrtDestroyStream, int (*)(void *));
FUNCTION(aclrtSynchronizeStreamWithTimeout, int (*)(void *, int32_t));
FUNCTION(aclrtStreamAbort, int (*)(void *));
FUNCTION(aclrtCreateEventWithFlag, int (*)(void **, uint32_t));
FUNCTION(aclrtCreateEventExWithFlag, int (*)(void **, uint32_t));
FUNCTION(aclrtDestroyEvent, int (*)(void *));
FUNCTION(aclrtRecordEvent, int (*)(void *, void *));
FUNCTION(aclrtStreamWaitEvent, int (*)(void *, void *));
FUNCTION(aclrtQueryEventStatus, int (*)(void *, aclrtEventRecordedStatus *));
FUNCTION(aclrtSynchronizeEventWithTimeout, int (*)(void *, int32_t));
FUNCTION(aclrtHostRegister, int (*)(void *, uint64_t, aclrtHostRegisterType, void **));
FUNCTION(aclrtHostRegisterV2, int (*)(void *, uint64_t, uint32_t));
FUNCTION(aclrtHostUnregister, int (*)(void *));
FUNCTION(aclrtIpcMemGetExportKey, int (*)(void *, size_t, char *, size_t, uint64_t));
FUNCTION(aclrtIpcMemImportByKey, int (*)(void **, const char *, uint64_t));
FUNCTION(aclrtIpcMemClose, int (*)(const char *));
FUNCTION(aclGetRecentErrMsg, const char *(*)(void));

_Static_assert(sizeof(aclrtMemMallocPolicy) == 4 && sizeof(aclrtMemcpyKind) == 4 && sizeof(aclrtMemAttr) == 4, "enums");
VALUE(ACL_MEMCPY_HOST_TO_DEVICE, 1);
VALUE(ACL_MEMCPY_DEVICE_TO_HOST, 2);
VALUE(ACL_MEMCPY_DEVICE_TO_DEVICE, 3);
VALUE(ACL_MEM_MALLOC_HUGE_FIRST, 0);
VALUE(ACL_HBM_MEM, 1);
VALUE(ACL_MEM_LOCATION_TYPE_HOST, 0);
VALUE(ACL_MEM_LOCATION_TYPE_DEVICE, 1);
VALUE(ACL_STREAM_FAST_LAUNCH, 1);
VALUE(ACL_STREAM_FAST_SYNC, 2);
VALUE(ACL_EVENT_SYNC, 1);
VALUE(ACL_EVENT_CAPTURE_STREAM_PROGRESS, 2);
VALUE(ACL_EVENT_RECORDED_STATUS_COMPLETE, 1);
VALUE(ACL_HOST_REGISTER_MAPPED, 0);
VALUE(ACL_HOST_REG_MAPPED, 2);
VALUE(ACL_HOST_REG_PINNED, 0x10000000);
VALUE(ACL_RT_IPC_MEM_EXPORT_FLAG_DISABLE_PID_VALIDATION, 1);
VALUE(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, 207000);
VALUE(ACL_ERROR_RT_MEMORY_ALLOCATION, 207001);
VALUE(ACL_ERROR_RT_CONTEXT_NULL, 107002);
VALUE(ACL_ERROR_RT_PARAM_INVALID, 107000);
VALUE(ACL_ERROR_RT_STREAM_SYNC_TIMEOUT, 507046);
VALUE(ACL_ERROR_RT_EVENT_SYNC_TIMEOUT, 507047);
VALUE(sizeof(aclrtMemcpyBatchAttr), 32);
VALUE(offsetof(aclrtMemcpyBatchAttr, srcLoc), 8);
VALUE(sizeof(aclrtMemLocation), 8);
VALUE(offsetof(aclrtMemLocation, type), 4);

int main(void) { return ACL_ERROR_REPEAT_INITIALIZE != 100002; }
