/* A plugin that breaks the contract in one way, chosen by -DFAULT=n or by the setting "fault". */
#include "kvstored_plugin.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifndef FAULT
#define FAULT 0
#endif

enum { CRASH = 1, HANG = 2, SMALL = 3, RUBBISH = 4, NEWER = 5, MISSING = 6 };

static const kvstored_host *host;
static char fault[32];
static kvstored_operation kept;
static int keeps_one;

static const kvstored_text NOTHING = {0, 0};

/* Not a constant, so that compilers don't know better. */
static void *volatile fault_address;

static int is(const char *name) { return strcmp(fault, name) == 0; }

/* Says what a namespace is, wrongly. */
static void describe(uint32_t size) {
    kvstored_namespace info = {.struct_size = size};
    static const char JSON[] = "{\"identity\": {}, \"layout\": [[4096]]}";
    info.description.data = JSON;
    info.description.length = sizeof JSON - 1;
    host->describe(host->context, &info);
}

static int32_t tier_open(const kvstored_host *given, const kvstored_setting *settings, uint64_t count, void **tier) {
    host = given;
    fault[0] = 0;
    keeps_one = 0;
    if (count == 1 && settings[0].value.length < sizeof fault) {
        memcpy(fault, settings[0].value.data, settings[0].value.length);
        fault[settings[0].value.length] = 0;
    }
    *tier = &fault;
    if (is("sizeless")) describe(0);
    if (is("invents")) describe(sizeof(kvstored_namespace));
    return is("open") ? 99 : KVSTORED_OK;
}

static int32_t tier_open_namespace(void *tier, const kvstored_namespace *info) {
    (void)tier;
    (void)info;
    return KVSTORED_OK;
}

static void tier_submit(void *tier, const kvstored_operation *operations, uint64_t count) {
    (void)tier;
    for (uint64_t i = 0; i < count; i++) {
        const kvstored_operation *operation = &operations[i];
        uint64_t length = operation->length;
        if (is("never") || (is("reads") && operation->action == KVSTORED_READ)) {
            kept = *operation;
            keeps_one = 1;
            continue;
        }
        if (is("twice")) host->complete(host->context, operation->ticket, KVSTORED_OK, length, NOTHING);
        if (is("unknown")) host->complete(host->context, ~operation->ticket, KVSTORED_OK, length, NOTHING);
        if (is("blocks")) sleep(3);
        if (is("status")) {
            host->complete(host->context, operation->ticket, 12345, length, NOTHING);
        } else if (is("more")) {
            host->complete(host->context, operation->ticket, KVSTORED_OK, length * 2, NOTHING);
        } else if (is("short") && operation->action == KVSTORED_WRITE) {
            host->complete(host->context, operation->ticket, KVSTORED_OK, length / 2, NOTHING);
        } else {
            /* "lies" gets here too: a read ends well and nothing was read */
            host->complete(host->context, operation->ticket, KVSTORED_OK, length, NOTHING);
        }
    }
}

static int32_t tier_remove(void *tier, const kvstored_key *keys, uint64_t count) {
    (void)tier;
    (void)keys;
    (void)count;
    return KVSTORED_OK;
}

static int32_t tier_purge(void *tier, const uint8_t namespace_digest[32]) {
    (void)tier;
    (void)namespace_digest;
    return KVSTORED_OK;
}

static int32_t tier_statistics(void *tier, kvstored_statistics *statistics) {
    (void)tier;
    (void)statistics;
    return KVSTORED_OK;
}

static int32_t tier_drain(void *tier, uint64_t timeout_ms) {
    (void)tier;
    (void)timeout_ms;
    return KVSTORED_OK;
}

static void tier_close(void *tier) {
    (void)tier;
    if (keeps_one) {
        memset(kept.data, 0x77, kept.length);
        host->complete(host->context, kept.ticket, KVSTORED_OK, kept.length, NOTHING);
    }
}

static const kvstored_tier TIER = {
    .struct_size = FAULT == SMALL ? 16 : FAULT == RUBBISH ? 0xFFFFFFFF : sizeof(kvstored_tier),
    .keeps = KVSTORED_TIER,
    .open = tier_open,
    .open_namespace = tier_open_namespace,
    .submit = FAULT == MISSING ? 0 : tier_submit,
    .remove = tier_remove,
    .purge = tier_purge,
    .statistics = tier_statistics,
    .drain = tier_drain,
    .close = tier_close,
};

static const kvstored_plugin PLUGIN = {
    .struct_size = sizeof(kvstored_plugin),
    .abi_version = FAULT == NEWER ? 0x00020000u : KVSTORED_ABI_VERSION,
    .name = "faulty",
    .version = "1",
    .tier = &TIER,
};

const kvstored_plugin *kvstored_plugin_entry(uint32_t host_abi_version) {
    (void)host_abi_version;
    if (FAULT == CRASH) *(volatile int *)fault_address = 1;
    while (FAULT == HANG) pause();
    return &PLUGIN;
}
