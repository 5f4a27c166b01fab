/*
 * The C interface between kvstored and a plugged-in tier, device or transport, version 1.2. docs/plugin-abi.md explains it
 * and has a tutorial; this file is enough to compile a plugin. 1.1 adds devices, transports, whole descriptions of
 * namespaces, and the memory that operations' data lie in; 1.2 lets a plugin describe namespaces that it has from before.
 *
 * A plugin is a shared object that exports one function, kvstored_plugin_entry. It's loaded once and never unloaded.
 *
 * Rules for both sides
 *  - Structs that carry struct_size may grow at their end in a later minor version. Read only fields that lie within
 *    the struct_size given. kvstored_text, kvstored_hash, kvstored_key, kvstored_setting, kvstored_copy
 *    and kvstored_move never change.
 *  - Nothing that one side allocates is freed by the other. What a pointer points to is lent for the length of the
 *    call, unless said otherwise.
 *  - No exception, longjmp or unwinding crosses a call.
 *  - Text is UTF-8 with a length, not ended by a zero.
 *  - Little-endian 64-bit Linux.
 */
#ifndef KVSTORED_PLUGIN_H
#define KVSTORED_PLUGIN_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Major version in the upper 16 bits: another major version is refused. A minor version only adds. */
#define KVSTORED_ABI_VERSION 0x00010002u

/* Outcomes. */
#define KVSTORED_OK 0
#define KVSTORED_INVALID_INPUT 1
#define KVSTORED_NOT_FOUND 2
#define KVSTORED_ALREADY_EXISTS 3
#define KVSTORED_MISMATCH 4
#define KVSTORED_BUSY 5
#define KVSTORED_TOO_LARGE 6
#define KVSTORED_NO_SPACE 7
#define KVSTORED_QUOTA_EXCEEDED 8
#define KVSTORED_CORRUPT 9
#define KVSTORED_TIMED_OUT 10
#define KVSTORED_CANCELLED 11
#define KVSTORED_UNAVAILABLE 12
#define KVSTORED_FENCED 13
#define KVSTORED_UNSUPPORTED 14
#define KVSTORED_PERMISSION_DENIED 15
#define KVSTORED_IO 16
#define KVSTORED_INTERNAL 17

/* What an operation asks for. */
#define KVSTORED_READ 1u  /* fill data[0..length] with the block's image */
#define KVSTORED_WRITE 2u /* store data[0..length] as the block's image */

/* How safe a written block is. */
#define KVSTORED_MEMORY 0u  /* in memory: lost with the process */
#define KVSTORED_TIER 1u    /* survives the process, not a power loss */
#define KVSTORED_DURABLE 2u /* survives a power loss */

/* Levels of log messages. */
#define KVSTORED_LOG_ERROR 1u
#define KVSTORED_LOG_WARNING 2u
#define KVSTORED_LOG_INFO 3u
#define KVSTORED_LOG_DEBUG 4u

/* From where to where a batch of copies goes. */
#define KVSTORED_HOST_TO_DEVICE 1u
#define KVSTORED_DEVICE_TO_HOST 2u
#define KVSTORED_DEVICE_TO_DEVICE 3u

/* The longest key of shared device memory. */
#define KVSTORED_MOST_KEY_BYTES 512u

/* Which way a transport moves bytes, seen from who asks it to. */
#define KVSTORED_FROM_PEER 1u
#define KVSTORED_TO_PEER 2u

/* Who may touch memory that is registered with a transport. */
#define KVSTORED_EXPOSED_TO_NOBODY 0u
#define KVSTORED_EXPOSED_TO_PEERS 1u

/* The longest address of a transport. */
#define KVSTORED_MOST_ADDRESS_BYTES 256u

typedef struct kvstored_text {
    const char *data;
    uint64_t length;
} kvstored_text;

/* What the engine calls a block: 16 to 32 bytes, the others zero. */
typedef struct kvstored_hash {
    uint8_t bytes[32];
    uint32_t length;
    uint32_t reserved;
} kvstored_hash;

/* A block's whole name. Compare all of it. */
typedef struct kvstored_key {
    uint8_t namespace_digest[32];
    kvstored_hash hash;
} kvstored_key;

typedef struct kvstored_setting {
    kvstored_text key;
    kvstored_text value;
} kvstored_setting;

/* Blocks of one namespace have one size. */
typedef struct kvstored_namespace {
    uint32_t struct_size;
    uint32_t shards;
    uint8_t digest[32];
    uint64_t image_bytes;   /* what each read and write moves; a multiple of 4096 */
    uint64_t payload_bytes; /* without descriptor page and padding */
    kvstored_text tenant;
    kvstored_text model;
    /* Since 1.1: all that the digest stands for, as JSON: {"identity": {...}, "layout": [[bytes of each tensor], ...]} with
     * one list for each shard. */
    kvstored_text description;
} kvstored_namespace;

/*
 * Since 1.1. Memory of kvstored that buffers lie in: a file that is mapped from its start, for systems that move bytes
 * from and to memory that was registered with them.
 */
typedef struct kvstored_memory {
    uint32_t struct_size;
    int32_t file;    /* the file's descriptor; duplicate it within the call to keep it */
    uint64_t id;     /* names the mapping in this process; never used again for another */
    void *base;      /* first byte */
    uint64_t length; /* bytes */
} kvstored_memory;

/*
 * One operation of a batch; the next one lies struct_size bytes further. The struct is lent for the call of submit.
 * data is lent until the operation is completed and no longer: it's aligned to 4096 bytes, and after complete() it must
 * be neither read nor written. A read may write to all of data even if it fails.
 */
typedef struct kvstored_operation {
    uint32_t struct_size;
    uint32_t action;     /* KVSTORED_READ or KVSTORED_WRITE */
    uint64_t ticket;     /* names the operation in complete() */
    kvstored_key key;
    void *data;
    uint64_t length;     /* image_bytes of the namespace */
    uint32_t durability; /* for writes: complete when the block is at least that safe, or as safe as the tier gets */
    uint32_t reserved;
    const kvstored_memory *memory; /* since 1.1: the memory that data lies in, or null; lent for the call of submit */
} kvstored_operation;

/* Counters only grow; the others are levels. */
typedef struct kvstored_statistics {
    uint32_t struct_size;
    uint32_t degraded; /* not 0 while the tier doesn't work and answers errors */
    uint64_t allocated_bytes;
    uint64_t capacity_bytes;
    uint64_t read_bytes;
    uint64_t written_bytes;
    uint64_t evicted_blocks;
    uint64_t refused_writes;
} kvstored_statistics;

/*
 * What kvstored gives to a tier, a device or a transport at open; valid for ever, after close too. All functions may be
 * called from any thread, also from within a call of the plugin, and return soon. For a device complete, stored and removed
 * are null, for a transport stored and removed.
 */
typedef struct kvstored_host {
    uint32_t struct_size;
    uint32_t abi_version;
    void *context; /* the first argument of every function */
    void (*log)(void *context, uint32_t level, kvstored_text message);
    /*
     * Ends an operation; exactly once for each ticket. transferred is the number of bytes moved: the operation's length
     * when status is KVSTORED_OK. message may be empty.
     */
    void (*complete)(void *context, uint64_t ticket, int32_t status, uint64_t transferred, kvstored_text message);
    /*
     * Says that blocks are here that kvstored didn't write in this run: those found at open, or written by another node.
     * Their namespaces need not be known yet.
     */
    void (*stored)(void *context, const kvstored_key *keys, uint64_t count);
    /* Says that blocks have left by the tier's own doing. Not needed after remove() and purge(). */
    void (*removed)(void *context, const kvstored_key *keys, uint64_t count);
    /*
     * Since 1.2; null for a device and for a transport. Says what a namespace is of which blocks are here from an earlier
     * run, so that they count for its tenant's quota before anybody opens it: the digest and the description that
     * open_namespace gave are enough. Best said before its blocks are told with stored.
     */
    void (*describe)(void *context, const kvstored_namespace *info);
} kvstored_host;

/*
 * A tier's functions; all must be there. kvstored calls them from one thread of its own, one after the other, and
 * answers lookups itself. Each but submit must return within the configured timeout (5 s by default); a tier that
 * doesn't is left out until it does.
 */
typedef struct kvstored_tier {
    uint32_t struct_size;
    uint32_t keeps; /* the safest level that a block reaches here: KVSTORED_MEMORY, _TIER or _DURABLE */
    /* Makes a tier, e.g. from a directory named in the settings. Unknown keys should be refused. */
    int32_t (*open)(const kvstored_host *host, const kvstored_setting *settings, uint64_t count, void **tier);
    /* Tells of a namespace before its first operation. KVSTORED_MISMATCH if it's known with another image size. */
    int32_t (*open_namespace)(void *tier, const kvstored_namespace *info);
    /* Takes operations over and returns at once; they complete on any thread, before submit returns too. */
    void (*submit)(void *tier, const kvstored_operation *operations, uint64_t count);
    /* Forgets blocks. Those that aren't there don't matter. */
    int32_t (*remove)(void *tier, const kvstored_key *keys, uint64_t count);
    /* Forgets all blocks of a namespace, also for later restarts. */
    int32_t (*purge)(void *tier, const uint8_t namespace_digest[32]);
    /* Fills what fits in statistics->struct_size. */
    int32_t (*statistics)(void *tier, kvstored_statistics *statistics);
    /* Makes everything that was completed as safe as the tier gets. */
    int32_t (*drain)(void *tier, uint64_t timeout_ms);
    /* Completes what is under way and frees the tier. Nothing is called afterwards. */
    void (*close)(void *tier);
} kvstored_tier;

/* One copy of a batch. An address on the host's side is a pointer, one on the device's side what allocate gave. */
typedef struct kvstored_copy {
    uint64_t destination;
    uint64_t source;
    uint64_t bytes;
} kvstored_copy;

/* What a device has been asked for. Counters only grow. */
typedef struct kvstored_device_statistics {
    uint32_t struct_size;
    uint32_t reserved;
    uint64_t batch_calls;  /* calls of the vendor's library that took many copies */
    uint64_t single_calls; /* calls of it that took one */
    uint64_t copies;
    uint64_t copied_bytes;
} kvstored_device_statistics;

/*
 * A device's functions, since 1.1. Those marked optional may be null. kvstored calls them from any thread, many at a time;
 * a thread that the device's library has to know first calls bind_thread before anything else. All but the synchronize
 * ones return soon. Streams, events and addresses are numbers of the device's own; an event, and the stream that one is
 * recorded in, may also be the engine's, by the handle that the vendor's library knows it by.
 */
typedef struct kvstored_device {
    uint32_t struct_size;
    uint32_t reserved;
    /* Makes a device, e.g. by the number in the settings. Unknown keys should be refused. */
    int32_t (*open)(const kvstored_host *host, const kvstored_setting *settings, uint64_t count, void **device);
    /* Ends the device. Nothing is called afterwards. */
    void (*close)(void *device);
    /* Why the latest call on this thread failed: copies up to capacity bytes of text, returns how many. */
    uint64_t (*last_error)(char *text, uint64_t capacity);
    /* Makes the device the calling thread's. */
    int32_t (*bind_thread)(void *device);
    int32_t (*memory)(void *device, uint64_t *free_bytes, uint64_t *total_bytes);
    /* KVSTORED_NO_SPACE when there isn't as much. */
    int32_t (*allocate)(void *device, uint64_t bytes, uint64_t *address);
    int32_t (*release)(void *device, uint64_t address);
    /* Optional, both or neither: memory of the host that copies go from and to. */
    int32_t (*register_host)(void *device, void *address, uint64_t bytes);
    int32_t (*unregister_host)(void *device, void *address);
    int32_t (*create_stream)(void *device, uint64_t *stream);
    int32_t (*destroy_stream)(void *device, uint64_t stream);
    /*
     * Hands copies to a stream, in as few calls of the vendor's library as it can, and returns before they are done. The
     * array is lent for the call, the memory until the stream has passed the copies.
     */
    int32_t (*copy)(void *device, uint64_t stream, uint32_t direction, const kvstored_copy *copies, uint64_t count);
    /* Waits for all that the stream was given; KVSTORED_TIMED_OUT after that time. Says what failed since the last call. */
    int32_t (*synchronize_stream)(void *device, uint64_t stream, uint64_t timeout_ms);
    /* Optional: drops what the stream hasn't begun. */
    int32_t (*abort_stream)(void *device, uint64_t stream);
    int32_t (*create_event)(void *device, uint64_t *event);
    int32_t (*destroy_event)(void *device, uint64_t event);
    /* Marks the stream's present end. */
    int32_t (*record_event)(void *device, uint64_t stream, uint64_t event);
    /* Lets the stream wait for the event's latest record before what it's given next. */
    int32_t (*wait_event)(void *device, uint64_t stream, uint64_t event);
    int32_t (*query_event)(void *device, uint64_t event, uint32_t *reached);
    int32_t (*synchronize_event)(void *device, uint64_t event, uint64_t timeout_ms);
    /* Optional, all or none: memory shared with other processes. *key_bytes is the room given, and the bytes written. */
    int32_t (*export_memory)(void *device, uint64_t address, uint64_t bytes, uint8_t *key, uint64_t *key_bytes);
    int32_t (*import_memory)(void *device, const uint8_t *key, uint64_t key_bytes, uint64_t *address);
    int32_t (*close_import)(void *device, uint64_t address, const uint8_t *key, uint64_t key_bytes);
    /* Fills what fits in statistics->struct_size. */
    int32_t (*statistics)(void *device, kvstored_device_statistics *statistics);
} kvstored_device;

/* One run of bytes that a transport moves: an address in this process, and one in the peer's. */
typedef struct kvstored_move {
    uint64_t local;
    uint64_t remote;
    uint64_t bytes;
} kvstored_move;

/*
 * A transport's functions, since 1.1; all must be there. It moves bytes between this process's memory and a peer's without
 * the peer's doing. kvstored decides who may have what: only the side that owns the wanted bytes, and has checked the
 * right to them, submits moves. Called from any thread, many at a time. Memory and connections are numbers other than 0 of
 * the transport's own.
 */
typedef struct kvstored_transport {
    uint32_t struct_size;
    uint32_t reserved;
    /* Makes a transport. Unknown keys should be refused. */
    int32_t (*open)(const kvstored_host *host, const kvstored_setting *settings, uint64_t count, void **transport);
    /* Ends the transport; no connection is open. Nothing is called afterwards. */
    void (*close)(void *transport);
    /* Why the latest call on this thread failed: copies up to capacity bytes of text, returns how many. */
    uint64_t (*last_error)(char *text, uint64_t capacity);
    /*
     * What a peer's transport needs to connect with this one. *length is the room given, and the bytes written, at most
     * KVSTORED_MOST_ADDRESS_BYTES. KVSTORED_UNSUPPORTED if it only connects to others.
     */
    int32_t (*address)(void *transport, uint8_t *bytes, uint64_t *length);
    /* Makes memory known, to be exposed or not. Connections that are open needn't know of it: kvstored makes new ones. */
    int32_t (*register_memory)(void *transport, void *address, uint64_t bytes, uint32_t exposed, uint64_t *memory);
    /* Takes that back. When it returns KVSTORED_OK, no peer touches the memory any more, whatever is under way. */
    int32_t (*unregister_memory)(void *transport, uint64_t memory);
    /* Connects with a peer by its address, within that time. Moves may use what is registered on both sides now. */
    int32_t (*connect)(void *transport, const uint8_t *address, uint64_t length, uint64_t timeout_ms,
                       uint64_t *connection);
    /*
     * Ends a connection. Before it returns KVSTORED_OK, whatever is under way on it has been completed, and from then on
     * nothing that was submitted touches memory on either side. Any other status says that this isn't certain.
     */
    int32_t (*disconnect)(void *transport, uint64_t connection);
    /*
     * Begins to move a batch, and returns soon. host->complete ends it, once, on any thread, when none of its memory is
     * touched any more; transferred is the sum of all bytes if its status is KVSTORED_OK. The array is lent for the call.
     * If this returns another status, nothing was begun and nothing is completed.
     */
    int32_t (*submit)(void *transport, uint64_t connection, uint32_t direction, const kvstored_move *moves,
                      uint64_t count, uint64_t ticket);
} kvstored_transport;

typedef struct kvstored_plugin {
    uint32_t struct_size;
    uint32_t abi_version;
    const char *name;    /* ended by a zero; 1 to 64 of a-z, 0-9, '-' and '_' */
    const char *version; /* ended by a zero; at most 64 bytes */
    const kvstored_tier *tier;           /* null in a plugin without a tier */
    const kvstored_device *device;       /* since 1.1; null in a plugin without a device */
    const kvstored_transport *transport; /* since 1.1; null in a plugin without a transport */
} kvstored_plugin;

/*
 * The one exported function. It gets kvstored's version and returns what lives for ever, or a null pointer if the plugin
 * can't work with that version. It's called in a process of its own first, so it should do nothing else.
 */
const kvstored_plugin *kvstored_plugin_entry(uint32_t host_abi_version);

#ifdef __cplusplus
}
#endif

#endif
