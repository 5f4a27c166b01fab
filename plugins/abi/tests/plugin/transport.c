/* A transport in C that copies within its process at once; and, by a define, something wrong with it. */
#include "kvstored_plugin.h"

#include <string.h>

static const kvstored_host *HOST;
static uint64_t NEXT = 1;

static int32_t tr_open(const kvstored_host *host, const kvstored_setting *settings, uint64_t count, void **transport) {
    (void)settings;
    HOST = host;
    *transport = &NEXT;
    return count == 0 ? KVSTORED_OK : KVSTORED_INVALID_INPUT;
}

static void tr_close(void *transport) { (void)transport; }

static uint64_t tr_last_error(char *text, uint64_t capacity) {
    static const char WORDS[] = "said in C";
    uint64_t length = sizeof WORDS - 1 < capacity ? sizeof WORDS - 1 : capacity;
    memcpy(text, WORDS, length);
    return length;
}

static int32_t tr_address(void *transport, uint8_t *bytes, uint64_t *length) {
    (void)transport;
    memcpy(bytes, "here", 4);
#ifdef FAULT_ADDRESS
    *length = 1u << 20;
#else
    *length = 4;
#endif
    return KVSTORED_OK;
}

static int32_t tr_register(void *transport, void *address, uint64_t bytes, uint32_t exposed, uint64_t *memory) {
    (void)transport, (void)address, (void)bytes, (void)exposed;
    *memory = NEXT++;
    return KVSTORED_OK;
}

static int32_t tr_unregister(void *transport, uint64_t memory) {
    (void)transport, (void)memory;
    return KVSTORED_OK;
}

static int32_t tr_connect(void *transport, const uint8_t *address, uint64_t length, uint64_t timeout_ms,
                          uint64_t *connection) {
    (void)transport, (void)timeout_ms;
    if (length != 4 || memcmp(address, "here", 4) != 0) return KVSTORED_UNAVAILABLE;
#ifdef FAULT_HANDLE
    *connection = 0;
#else
    *connection = NEXT++;
#endif
    return KVSTORED_OK;
}

static int32_t tr_disconnect(void *transport, uint64_t connection) {
    (void)transport, (void)connection;
    return KVSTORED_OK;
}

static int32_t tr_submit(void *transport, uint64_t connection, uint32_t direction, const kvstored_move *moves,
                         uint64_t count, uint64_t ticket) {
    (void)transport, (void)connection;
    kvstored_text text = {"done in C", 9};
    uint64_t bytes = 0;
    for (uint64_t i = 0; i < count; i++) {
        void *local = (void *)(uintptr_t)moves[i].local, *remote = (void *)(uintptr_t)moves[i].remote;
        if (direction == KVSTORED_FROM_PEER) memcpy(local, remote, moves[i].bytes);
        else memcpy(remote, local, moves[i].bytes);
        bytes += moves[i].bytes;
    }
#ifdef FAULT_STATUS
    HOST->complete(HOST->context, ticket, 4711, 0, text);
#elif defined FAULT_MORE
    HOST->complete(HOST->context, ticket, KVSTORED_OK, bytes + 1, text);
#elif defined FAULT_SHORT
    HOST->complete(HOST->context, ticket, KVSTORED_OK, bytes - 1, text);
#elif defined FAULT_FAILS
    HOST->complete(HOST->context, ticket, KVSTORED_IO, 0, text);
#elif defined FAULT_LEAVES || defined FAULT_REFUSES
    (void)ticket, (void)text;
#else
    HOST->complete(HOST->context, ticket, KVSTORED_OK, bytes, text);
#endif
#ifdef FAULT_TWICE
    HOST->complete(HOST->context, ticket, KVSTORED_OK, bytes, text);
#endif
#ifdef FAULT_REFUSES
    return KVSTORED_BUSY;
#else
    return KVSTORED_OK;
#endif
}

static const kvstored_transport TRANSPORT = {
    .struct_size = sizeof(kvstored_transport),
    .open = tr_open,
    .close = tr_close,
    .last_error = tr_last_error,
    .address = tr_address,
    .register_memory = tr_register,
    .unregister_memory = tr_unregister,
    .connect = tr_connect,
#ifndef FAULT_LACKS
    .disconnect = tr_disconnect,
#endif
    .submit = tr_submit,
};

static const kvstored_plugin PLUGIN = {
    .struct_size = sizeof(kvstored_plugin),
    .abi_version = KVSTORED_ABI_VERSION,
    .name = "here",
    .version = "1.0.0",
    .transport = &TRANSPORT,
};

const kvstored_plugin *kvstored_plugin_entry(uint32_t host_abi_version) {
#ifdef FAULT_LACKS
    (void)tr_disconnect;
#endif
    return host_abi_version >> 16 == KVSTORED_ABI_VERSION >> 16 ? &PLUGIN : NULL;
}
