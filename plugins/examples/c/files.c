/*
 * An example of a plugin in C: a tier that keeps each block in a file of its own, DIRECTORY/NAMESPACE/HASH.
 *
 *     cc -std=c11 -O2 -shared -fPIC -pthread -I INCLUDE files.c -o files.so
 *
 * One setting: path, a directory that exists. Capacity is the file system's.
 */
#define _POSIX_C_SOURCE 200809L
#include "kvstored_plugin.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MOST_PATH = 1024, DIGEST_HEX = 64 };

struct job {
    kvstored_operation operation;
    struct job *next;
};

struct tier {
    const kvstored_host *host;
    char path[MOST_PATH];
    pthread_t worker;
    pthread_mutex_t lock;
    pthread_cond_t came;
    struct job *first, *last;
    int closing;
    uint64_t read_bytes, written_bytes, refused_writes;
};

static kvstored_text text(const char *literal) {
    kvstored_text made = {literal, strlen(literal)};
    return made;
}

static void complain(const kvstored_host *host, const char *what) {
    host->log(host->context, KVSTORED_LOG_ERROR, text(what));
}

static int32_t status_of(int error) {
    switch (error) {
    case ENOENT: return KVSTORED_NOT_FOUND;
    case ENOSPC:
    case EDQUOT: return KVSTORED_NO_SPACE;
    case EACCES:
    case EROFS: return KVSTORED_PERMISSION_DENIED;
    default: return KVSTORED_IO;
    }
}

static void to_hex(const uint8_t *bytes, size_t count, char *hex) {
    for (size_t i = 0; i < count; i++) snprintf(hex + 2 * i, 3, "%02x", bytes[i]);
}

/* Returns the number of bytes, or -1. */
static int from_hex(const char *hex, uint8_t *bytes, size_t most) {
    size_t digits = strlen(hex);
    if (digits % 2 != 0 || digits / 2 > most) return -1;
    for (size_t i = 0; i < digits / 2; i++) {
        char pair[3] = {hex[2 * i], hex[2 * i + 1], 0};
        char *end;
        bytes[i] = (uint8_t)strtoul(pair, &end, 16);
        if (*end != 0) return -1;
    }
    return (int)(digits / 2);
}

static void folder_of(const struct tier *tier, const uint8_t digest[32], char *path, size_t size) {
    char hex[DIGEST_HEX + 1];
    to_hex(digest, 32, hex);
    snprintf(path, size, "%s/%s", tier->path, hex);
}

static void file_of(const struct tier *tier, const kvstored_key *key, char *path, size_t size) {
    char folder[MOST_PATH + DIGEST_HEX + 2], hex[DIGEST_HEX + 1];
    folder_of(tier, key->namespace_digest, folder, sizeof folder);
    to_hex(key->hash.bytes, key->hash.length, hex);
    snprintf(path, size, "%s/%s", folder, hex);
}

enum { LONG_PATH = MOST_PATH + 2 * DIGEST_HEX + 16 };

/* Moves all of the buffer, whatever the kernel moves at a time. Returns 0 or an error number. */
static int move(int file, int reading, char *data, uint64_t length, uint64_t *moved) {
    while (*moved < length) {
        ssize_t part = reading ? pread(file, data + *moved, length - *moved, (off_t)*moved)
                               : pwrite(file, data + *moved, length - *moved, (off_t)*moved);
        if (part < 0 && errno == EINTR) continue;
        if (part < 0) return errno;
        if (part == 0) return 0;
        *moved += (uint64_t)part;
    }
    return 0;
}

static int read_block(struct tier *tier, const kvstored_operation *operation, uint64_t *moved) {
    char path[LONG_PATH];
    file_of(tier, &operation->key, path, sizeof path);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return errno;
    int error = move(file, 1, operation->data, operation->length, moved);
    close(file);
    return error;
}

/*
 * A temporary file first: a block is absent or whole when the process dies. A power loss may leave any of it, which
 * kvstored notices by the block's checksums; so the tier says that it keeps blocks as KVSTORED_TIER, not _DURABLE.
 */
static int write_block(struct tier *tier, const kvstored_operation *operation, uint64_t *moved) {
    char folder[LONG_PATH], path[LONG_PATH], temporary[LONG_PATH + 8];
    folder_of(tier, operation->key.namespace_digest, folder, sizeof folder);
    file_of(tier, &operation->key, path, sizeof path);
    snprintf(temporary, sizeof temporary, "%s.new", path);
    if (mkdir(folder, 0700) != 0 && errno != EEXIST) return errno;
    int file = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (file < 0) return errno;
    int error = move(file, 0, operation->data, operation->length, moved);
    if (close(file) != 0 && error == 0) error = errno;
    if (error == 0 && rename(temporary, path) != 0) error = errno;
    if (error != 0) unlink(temporary);
    return error;
}

static void run_job(struct tier *tier, const kvstored_operation *operation) {
    uint64_t moved = 0;
    int reading = operation->action == KVSTORED_READ;
    int error = reading ? read_block(tier, operation, &moved) : write_block(tier, operation, &moved);
    pthread_mutex_lock(&tier->lock);
    if (reading) tier->read_bytes += moved;
    else tier->written_bytes += moved;
    if (!reading && error == ENOSPC) tier->refused_writes++;
    pthread_mutex_unlock(&tier->lock);
    /* no lock is held: kvstored may call back */
    tier->host->complete(tier->host->context, operation->ticket, error == 0 ? KVSTORED_OK : status_of(error),
                         moved, text(error == 0 ? "" : strerror(error)));
}

static void *work(void *argument) {
    struct tier *tier = argument;
    for (;;) {
        pthread_mutex_lock(&tier->lock);
        while (tier->first == NULL && !tier->closing) pthread_cond_wait(&tier->came, &tier->lock);
        struct job *job = tier->first;
        if (job != NULL) tier->first = job->next;
        if (tier->first == NULL) tier->last = NULL;
        pthread_mutex_unlock(&tier->lock);
        if (job == NULL) return NULL;
        run_job(tier, &job->operation);
        free(job);
    }
}

/* Tells of the blocks that are there already. */
static void tell_stored(struct tier *tier) {
    DIR *root = opendir(tier->path);
    if (root == NULL) return;
    for (struct dirent *entry; (entry = readdir(root)) != NULL;) {
        kvstored_key key;
        memset(&key, 0, sizeof key);
        if (from_hex(entry->d_name, key.namespace_digest, 32) != 32) continue;
        char path[LONG_PATH];
        folder_of(tier, key.namespace_digest, path, sizeof path);
        DIR *folder = opendir(path);
        if (folder == NULL) continue;
        for (struct dirent *block; (block = readdir(folder)) != NULL;) {
            memset(&key.hash, 0, sizeof key.hash);
            int length = from_hex(block->d_name, key.hash.bytes, 32);
            if (length < 16) continue;
            key.hash.length = (uint32_t)length;
            tier->host->stored(tier->host->context, &key, 1);
        }
        closedir(folder);
    }
    closedir(root);
}

static int32_t tier_open(const kvstored_host *host, const kvstored_setting *settings, uint64_t count, void **result) {
    struct tier *tier = calloc(1, sizeof *tier);
    if (tier == NULL) return KVSTORED_NO_SPACE;
    tier->host = host;
    for (uint64_t i = 0; i < count; i++) {
        kvstored_text key = settings[i].key, value = settings[i].value;
        if (key.length != 4 || memcmp(key.data, "path", 4) != 0 || value.length >= MOST_PATH) {
            complain(host, "the one setting is path, of at most 1023 bytes");
            free(tier);
            return KVSTORED_INVALID_INPUT;
        }
        memcpy(tier->path, value.data, value.length);
        tier->path[value.length] = 0;
    }
    struct stat found;
    if (tier->path[0] == 0 || stat(tier->path, &found) != 0 || !S_ISDIR(found.st_mode)) {
        complain(host, "path must name a directory");
        free(tier);
        return KVSTORED_INVALID_INPUT;
    }
    pthread_mutex_init(&tier->lock, NULL);
    pthread_cond_init(&tier->came, NULL);
    tell_stored(tier);
    if (pthread_create(&tier->worker, NULL, work, tier) != 0) {
        complain(host, "no thread can be had");
        free(tier);
        return KVSTORED_UNAVAILABLE;
    }
    *result = tier;
    return KVSTORED_OK;
}

static int32_t tier_open_namespace(void *tier, const kvstored_namespace *info) {
    (void)tier;
    (void)info;
    return KVSTORED_OK;
}

static void tier_submit(void *argument, const kvstored_operation *operations, uint64_t count) {
    struct tier *tier = argument;
    const char *next = (const char *)operations;
    for (uint64_t i = 0; i < count; i++) {
        const kvstored_operation *operation = (const kvstored_operation *)next;
        next += operation->struct_size;
        struct job *job = malloc(sizeof *job);
        if (job == NULL) {
            tier->host->complete(tier->host->context, operation->ticket, KVSTORED_BUSY, 0, text("no memory"));
            continue;
        }
        job->operation = *operation;
        job->next = NULL;
        pthread_mutex_lock(&tier->lock);
        if (tier->last != NULL) tier->last->next = job;
        else tier->first = job;
        tier->last = job;
        pthread_cond_signal(&tier->came);
        pthread_mutex_unlock(&tier->lock);
    }
}

static int32_t tier_remove(void *argument, const kvstored_key *keys, uint64_t count) {
    struct tier *tier = argument;
    int32_t status = KVSTORED_OK;
    for (uint64_t i = 0; i < count; i++) {
        char path[LONG_PATH];
        file_of(tier, &keys[i], path, sizeof path);
        if (unlink(path) != 0 && errno != ENOENT) status = status_of(errno);
    }
    return status;
}

static int32_t tier_purge(void *argument, const uint8_t namespace_digest[32]) {
    struct tier *tier = argument;
    char path[LONG_PATH];
    folder_of(tier, namespace_digest, path, sizeof path);
    DIR *folder = opendir(path);
    if (folder == NULL) return errno == ENOENT ? KVSTORED_OK : status_of(errno);
    int error = 0;
    for (struct dirent *block; (block = readdir(folder)) != NULL;) {
        if (block->d_name[0] != '.' && unlinkat(dirfd(folder), block->d_name, 0) != 0) error = errno;
    }
    if (error == 0 && fsync(dirfd(folder)) != 0) error = errno;
    closedir(folder);
    return error == 0 ? KVSTORED_OK : status_of(error);
}

static int32_t tier_statistics(void *argument, kvstored_statistics *statistics) {
    struct tier *tier = argument;
    kvstored_statistics filled;
    memset(&filled, 0, sizeof filled);
    pthread_mutex_lock(&tier->lock);
    filled.read_bytes = tier->read_bytes;
    filled.written_bytes = tier->written_bytes;
    filled.refused_writes = tier->refused_writes;
    pthread_mutex_unlock(&tier->lock);
    filled.struct_size = statistics->struct_size;
    size_t size = filled.struct_size < sizeof filled ? filled.struct_size : sizeof filled;
    memcpy(statistics, &filled, size);
    return KVSTORED_OK;
}

/* Whatever was completed is as safe as it gets here: it's the kernel's. */
static int32_t tier_drain(void *argument, uint64_t timeout_ms) {
    (void)argument;
    (void)timeout_ms;
    return KVSTORED_OK;
}

static void tier_close(void *argument) {
    struct tier *tier = argument;
    pthread_mutex_lock(&tier->lock);
    tier->closing = 1;
    pthread_cond_signal(&tier->came);
    pthread_mutex_unlock(&tier->lock);
    pthread_join(tier->worker, NULL);
    free(tier);
}

static const kvstored_tier TIER = {
    .struct_size = sizeof(kvstored_tier),
    .keeps = KVSTORED_TIER,
    .open = tier_open,
    .open_namespace = tier_open_namespace,
    .submit = tier_submit,
    .remove = tier_remove,
    .purge = tier_purge,
    .statistics = tier_statistics,
    .drain = tier_drain,
    .close = tier_close,
};

static const kvstored_plugin PLUGIN = {
    .struct_size = sizeof(kvstored_plugin),
    .abi_version = KVSTORED_ABI_VERSION,
    .name = "files",
    .version = "1.0.0",
    .tier = &TIER,
};

const kvstored_plugin *kvstored_plugin_entry(uint32_t host_abi_version) {
    return host_abi_version >> 16 == KVSTORED_ABI_VERSION >> 16 ? &PLUGIN : NULL;
}
