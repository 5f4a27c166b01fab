/* What src/symbols.rs declares, against the vendor's headers; see headers.sh. It compiles, or something differs. */
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "hixl_cs.h"

#define FUNCTION(name, ...) static_assert(std::is_same<decltype(&name), __VA_ARGS__>::value, #name)
#define VALUE(left, right) static_assert((left) == (right), #left)

using Handle = void *;
using Status = uint32_t;

FUNCTION(HixlCSServerCreate, Status (*)(const HixlServerDesc *, const HixlServerConfig *, Handle *));
FUNCTION(HixlCSServerRegMem, Status (*)(Handle, const char *, const CommMem *, Handle *));
FUNCTION(HixlCSServerUnregMem, Status (*)(Handle, Handle));
FUNCTION(HixlCSServerListen, Status (*)(Handle, uint32_t));
FUNCTION(HixlCSServerDestroy, Status (*)(Handle));
FUNCTION(HixlCSClientCreate, Status (*)(const HixlClientDesc *, const HixlClientConfig *, Handle *));
FUNCTION(HixlCSClientRegMem, Status (*)(Handle, const char *, const CommMem *, Handle *));
FUNCTION(HixlCSClientUnregMem, Status (*)(Handle, Handle));
FUNCTION(HixlCSClientConnect, Status (*)(Handle, uint32_t));
FUNCTION(HixlCSClientGetRemoteMem, Status (*)(Handle, CommMem **, char ***, uint32_t *, uint32_t));
FUNCTION(HixlCSClientBatchPutAsync, Status (*)(Handle, uint32_t, const HixlOneSideOpDesc *, Handle *));
FUNCTION(HixlCSClientBatchGetAsync, Status (*)(Handle, uint32_t, const HixlOneSideOpDesc *, Handle *));
FUNCTION(HixlCSClientQueryCompleteStatus, Status (*)(Handle, Handle, HixlCompleteStatus *));
FUNCTION(HixlCSClientDestroy, Status (*)(Handle));

VALUE(HIXL_SUCCESS, 0);
VALUE(HIXL_COMPLETE_STATUS_WAITING, 0);
VALUE(HIXL_COMPLETE_STATUS_COMPLETED, 1);
VALUE(HIXL_COMPLETE_STATUS_FAILED, 3);
VALUE(COMM_PROTOCOL_ROCE, 1);
VALUE(COMM_ADDR_TYPE_IP_V4, 0);
VALUE(COMM_ADDR_TYPE_IP_V6, 1);
VALUE(ENDPOINT_LOC_TYPE_DEVICE, 0);
VALUE(ENDPOINT_LOC_TYPE_HOST, 1);
VALUE(COMM_MEM_TYPE_DEVICE, 0);
VALUE(COMM_MEM_TYPE_HOST, 1);

static_assert(sizeof(HixlCompleteStatus) == 4 && sizeof(CommProtocol) == 4 && sizeof(CommAddrType) == 4, "enums");
static_assert(sizeof(EndpointLocType) == 4 && sizeof(CommMemType) == 4, "enums");

VALUE(sizeof(CommAddr), 40);
VALUE(offsetof(CommAddr, raws), 4);
VALUE(offsetof(CommAddr, addr), 4);
VALUE(offsetof(CommAddr, addr6), 4);
VALUE(sizeof(EndpointLoc), 64);
VALUE(offsetof(EndpointLoc, device.devPhyId), 4);
VALUE(sizeof(EndpointDesc), 160);
VALUE(offsetof(EndpointDesc, protocol), 0);
VALUE(offsetof(EndpointDesc, commAddr), 4);
VALUE(offsetof(EndpointDesc, loc), 44);
VALUE(offsetof(EndpointDesc, raws), 108);
VALUE(sizeof(CommMem), 24);
VALUE(offsetof(CommMem, addr), 8);
VALUE(offsetof(CommMem, size), 16);
VALUE(sizeof(HixlServerDesc), 128);
VALUE(offsetof(HixlServerDesc, endpoint_list), 0);
VALUE(offsetof(HixlServerDesc, server_ip), 8);
VALUE(offsetof(HixlServerDesc, server_port), 16);
VALUE(offsetof(HixlServerDesc, endpoint_list_num), 20);
VALUE(offsetof(HixlServerDesc, reserved), 24);
VALUE(sizeof(HixlClientDesc), 128);
VALUE(offsetof(HixlClientDesc, local_endpoint), 0);
VALUE(offsetof(HixlClientDesc, remote_endpoint), 8);
VALUE(offsetof(HixlClientDesc, server_ip), 16);
VALUE(offsetof(HixlClientDesc, server_port), 24);
VALUE(offsetof(HixlClientDesc, tc), 28);
VALUE(offsetof(HixlClientDesc, sl), 29);
VALUE(offsetof(HixlClientDesc, reserved), 30);
VALUE(sizeof(HixlServerConfig), 128);
VALUE(sizeof(HixlClientConfig), 128);
VALUE(offsetof(HixlClientConfig, global_resource_config), 0);
VALUE(sizeof(HixlOneSideOpDesc), 24);
VALUE(offsetof(HixlOneSideOpDesc, remote_buf), 0);
VALUE(offsetof(HixlOneSideOpDesc, local_buf), 8);
VALUE(offsetof(HixlOneSideOpDesc, len), 16);
