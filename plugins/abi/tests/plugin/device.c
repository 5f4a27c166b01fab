/* A device in C over plain memory, whose streams run everything at once; and, by a define, something wrong with it. */
#define _POSIX_C_SOURCE 200809L
#include "kvstored_plugin.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

static kvstored_device_statistics COUNTS;

static int32_t dev_open(const kvstored_host *host, const kvstored_setting *settings, uint64_t count, void **device) {
    (void)host;
    (void)settings;
    *device = &COUNTS;
    return count == 0 ? KVSTORED_OK : KVSTORED_INVALID_INPUT;
}

static void dev_close(void *device) { (void)device; }

static uint64_t dev_last_error(char *text, uint64_t capacity) {
    static const char WORDS[] = "said in C";
    uint64_t length = sizeof WORDS - 1 < capacity ? sizeof WORDS - 1 : capacity;
    memcpy(text, WORDS, length);
    return length;
}

static int32_t dev_bind_thread(void *device) {
    (void)device;
    return KVSTORED_OK;
}

static int32_t dev_memory(void *device, uint64_t *free_bytes, uint64_t *total_bytes) {
    (void)device;
    *free_bytes = *total_bytes = 1u << 30;
    return KVSTORED_OK;
}

static int32_t dev_allocate(void *device, uint64_t bytes, uint64_t *address) {
    (void)device;
    *address = (uint64_t)(uintptr_t)malloc(bytes);
    return *address ? KVSTORED_OK : KVSTORED_NO_SPACE;
}

static int32_t dev_release(void *device, uint64_t address) {
    (void)device;
    free((void *)(uintptr_t)address);
    return KVSTORED_OK;
}

static int32_t dev_create(void *device, uint64_t *handle) {
    (void)device;
#ifdef FAULT_STATUS
    *handle = 0;
    return 4711;
#else
    *handle = 1;
    return KVSTORED_OK;
#endif
}

static int32_t dev_handle(void *device, uint64_t handle) {
    (void)device;
    (void)handle;
    return KVSTORED_OK;
}

static int32_t dev_two(void *device, uint64_t one, uint64_t other) {
    (void)device;
    (void)one;
    (void)other;
    return KVSTORED_OK;
}

static int32_t dev_query(void *device, uint64_t event, uint32_t *reached) {
    (void)device;
    (void)event;
    *reached = 1;
    return KVSTORED_OK;
}

#ifndef FAULT_NO_COPY
static int32_t dev_copy(void *device, uint64_t stream, uint32_t direction, const kvstored_copy *copies, uint64_t count) {
    kvstored_device_statistics *counts = device;
    (void)stream;
    (void)direction;
#ifdef FAULT_HANG
    for (;;) {
        struct timespec hour = {3600, 0};
        nanosleep(&hour, NULL);
    }
#endif
    counts->batch_calls++;
    for (uint64_t i = 0; i < count; i++) {
        memmove((void *)(uintptr_t)copies[i].destination, (const void *)(uintptr_t)copies[i].source, copies[i].bytes);
        counts->copies++;
        counts->copied_bytes += copies[i].bytes;
    }
    return KVSTORED_OK;
}
#endif

static int32_t dev_statistics(void *device, kvstored_device_statistics *statistics) {
    uint32_t given = statistics->struct_size;
    memcpy(statistics, device, given < sizeof COUNTS ? given : sizeof COUNTS);
    statistics->struct_size = given;
    return KVSTORED_OK;
}

static const kvstored_device DEVICE = {
    .struct_size = sizeof(kvstored_device),
    .open = dev_open,
    .close = dev_close,
    .last_error = dev_last_error,
    .bind_thread = dev_bind_thread,
    .memory = dev_memory,
    .allocate = dev_allocate,
    .release = dev_release,
    .create_stream = dev_create,
    .destroy_stream = dev_handle,
#ifndef FAULT_NO_COPY
    .copy = dev_copy,
#endif
    .synchronize_stream = dev_two,
    .create_event = dev_create,
    .destroy_event = dev_handle,
    .record_event = dev_two,
    .wait_event = dev_two,
    .query_event = dev_query,
    .synchronize_event = dev_two,
    .statistics = dev_statistics,
};

static const kvstored_plugin PLUGIN = {
    .struct_size = sizeof(kvstored_plugin),
    .abi_version = KVSTORED_ABI_VERSION,
    .name = "odd",
    .version = "1",
    .device = &DEVICE,
};

const kvstored_plugin *kvstored_plugin_entry(uint32_t host_abi_version) {
    return host_abi_version >> 16 == KVSTORED_ABI_VERSION >> 16 ? &PLUGIN : NULL;
}
