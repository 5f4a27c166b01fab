//! What may be set, each key once: the flags of `kvstored serve` and the keys of its configuration file.

use std::net::SocketAddr;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::hbm::HbmDevice;
use super::pool::PluggedTransport;
use super::sizes::{ByteSize, Directories, Gibibytes, PluginSetting, Quota, plugin_setting_map, quota_map};
use super::values::{HttpAddress, IoEngine, Listen, LogFormat, LogLevel, Policy, Word};
use kvstored_core::Pipeline;

/// Every setting, where it's given. A flag's name is the key's with hyphens.
///
/// Unknown fields are not an error here, so that a file written for a newer version still starts an older one.
#[derive(Clone, Debug, Default, PartialEq, clap::Args, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ServeOptions {
    /// Tiers from fast to durable: Cache|Posix, Cache|Pool|Posix, Cache|Posix|S3, Hbm|Cache|Posix, Cache|Ds3fs, Cache, Posix,
    /// Cache|Empty, Empty or Fake; Plugin(NAME) stands for a plugged-in tier
    /// [default: Cache|Posix]
    #[arg(long, value_name = "TIERS")]
    pub pipeline: Option<Word<Pipeline>>,

    /// Storage directories of the Posix tier, or of Ds3fs; blocks are striped over several
    /// [default: $XDG_DATA_HOME/kvstored, ~/.local/share/kvstored, or /var/lib/kvstored for root]
    #[arg(long, value_name = "DIR[:DIR]")]
    pub storage_backends: Option<Directories>,

    /// Bound of the DRAM of the cache buffer, in GiB (2^30 bytes)
    /// [default: a quarter of the memory, at most 256]
    #[arg(long, value_name = "N", conflicts_with = "cache_buffer_capacity")]
    pub cache_buffer_capacity_gb: Option<Gibibytes>,

    /// Bound of the DRAM of the cache buffer, e.g. 512MiB
    #[arg(long, value_name = "SIZE")]
    pub cache_buffer_capacity: Option<ByteSize>,

    /// Bound of the bytes allocated in the storage directories together, in GiB (2^30 bytes); 0 takes most of what
    /// is free at the start, plus what is there [default: 0]
    #[arg(long, value_name = "N", conflicts_with = "posix_capacity")]
    pub posix_capacity_gb: Option<Gibibytes>,

    /// Bound of the bytes allocated in the storage directories together, e.g. 2TiB
    #[arg(long, value_name = "SIZE")]
    pub posix_capacity: Option<ByteSize>,

    /// Whose memory the Hbm tier takes: host, or Plugin(NAME) for a plugged-in device, e.g. Plugin(ascend) [default: host]
    #[arg(long, value_name = "DEVICE")]
    pub hbm_device: Option<Word<HbmDevice>>,

    /// Memory that the Hbm tier takes on its device, all of it at the start, e.g. 8GiB
    #[arg(long, value_name = "SIZE")]
    pub hbm_capacity: Option<ByteSize>,

    /// Where local clients connect
    /// [default: unix:$XDG_RUNTIME_DIR/kvstored.sock or unix:/tmp/kvstored-UID/kvstored.sock]
    #[arg(long, value_name = "unix:PATH")]
    pub listen: Option<Word<Listen>>,

    /// Where health, readiness, metrics and statistics are served; port 0 takes a free one, `off` none
    /// [default: 127.0.0.1:9380]
    #[arg(long, value_name = "HOST:PORT|off")]
    pub http: Option<Word<HttpAddress>>,

    /// Allow an HTTP address that other machines can reach. The endpoints change nothing, but they are not encrypted and
    /// ask for no credentials, and namespaces, tenants and traffic can be read from them
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub http_allow_remote: Option<bool>,

    /// Which block leaves the cache buffer first: arc, lru, fifo or s3-fifo [default: arc]
    #[arg(long, value_name = "POLICY")]
    pub eviction_policy: Option<Word<Policy>>,

    /// Ask for huge pages for the cache buffer [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub huge_pages: Option<bool>,

    /// One in how many blocks the shadow caches follow, which tell how often each policy would have hit; 0 for none
    /// [default: 64]
    #[arg(long, value_name = "N")]
    pub shadow_sample_one_in: Option<u32>,

    /// How the Posix tier reads and writes: auto, uring or psync [default: auto]
    #[arg(long, value_name = "ENGINE")]
    pub posix_io_engine: Option<Word<IoEngine>>,

    /// Read and write past the page cache where the file system can [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub io_direct: Option<bool>,

    /// How often other writers' journals are read, in milliseconds [default: 50]
    #[arg(long, value_name = "MS")]
    pub posix_tail_interval_ms: Option<u64>,

    /// Size of a segment file [default: a thirty-second of a directory's capacity, at most 1 GiB]
    #[arg(long, value_name = "SIZE")]
    pub posix_segment_bytes: Option<ByteSize>,

    /// Write under this identifier (32 hexadecimal digits) [default: a new one, or a dead writer's]
    #[arg(long, value_name = "ID")]
    pub posix_writer_id: Option<String>,

    /// For network file systems: ask the server for file sizes, and read journals past the page cache
    /// [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub posix_force_sync: Option<bool>,

    /// Used part of the capacity at which eviction from storage starts, 0 to 1 [default: 0.9]
    #[arg(long, value_name = "RATIO")]
    pub posix_high_watermark: Option<f64>,

    /// Used part of the capacity at which eviction from storage stops, 0 to 1 [default: 0.02 below where it starts]
    #[arg(long, value_name = "RATIO")]
    pub posix_low_watermark: Option<f64>,

    /// Bound of what a tenant may occupy in each tier; `*` stands for every tenant without one of its own; may be
    /// repeated
    #[arg(long, value_name = "NAME=SIZE")]
    #[serde(with = "quota_map")]
    #[schemars(with = "std::collections::BTreeMap<String, ByteSize>")]
    pub tenant_quota: Vec<Quota>,

    /// Bound of what a namespace (64 hexadecimal digits) may occupy in each tier; may be repeated
    #[arg(long, value_name = "NAMESPACE=SIZE")]
    #[serde(with = "quota_map")]
    #[schemars(with = "std::collections::BTreeMap<String, ByteSize>")]
    pub namespace_quota: Vec<Quota>,

    /// Bucket of the S3 tier, which has to be there. Credentials come from the environment: AWS_ACCESS_KEY_ID,
    /// AWS_SECRET_ACCESS_KEY and the other AWS_ variables
    #[arg(long, value_name = "NAME")]
    pub s3_bucket: Option<String>,

    /// What every key in the bucket begins with; daemons with the same bucket and prefix share their blocks
    /// [default: none]
    #[arg(long, value_name = "PREFIX")]
    pub s3_prefix: Option<String>,

    /// Address of the S3 service [default: the environment variable AWS_ENDPOINT_URL, or AWS]
    #[arg(long, value_name = "URL")]
    pub s3_endpoint: Option<String>,

    /// Region of the bucket [default: the environment variable AWS_REGION, or us-east-1]
    #[arg(long, value_name = "REGION")]
    pub s3_region: Option<String>,

    /// Allow an S3 service without TLS; so does the environment variable AWS_ALLOW_HTTP [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub s3_allow_http: Option<bool>,

    /// Bound of the bytes below the prefix, all daemons together; the oldest objects are deleted first [default: 1TiB]
    #[arg(long, value_name = "SIZE")]
    pub s3_capacity: Option<ByteSize>,

    /// Blocks are gathered into objects of about this size, 64KiB to 1GiB [default: 32MiB]
    #[arg(long, value_name = "SIZE")]
    pub s3_object_bytes: Option<ByteSize>,

    /// How often the bucket is asked for other daemons' objects, in milliseconds [default: 1000]
    #[arg(long, value_name = "MS")]
    pub s3_tail_interval_ms: Option<u64>,

    /// How long a load from the bucket may take before its blocks are misses, in milliseconds [default: 5000]
    #[arg(long, value_name = "MS")]
    pub s3_read_timeout_ms: Option<u64>,

    /// How long storing an object may take, in milliseconds [default: 60000]
    #[arg(long, value_name = "MS")]
    pub s3_write_timeout_ms: Option<u64>,

    /// Where the pool's master answers; several that stand in for each other are separated by commas; the environment
    /// variable MOONCAKE_MASTER comes before the file's mooncake_config
    #[arg(long, value_name = "HOST:PORT")]
    pub pool_master_address: Option<String>,

    /// Memory that this process lends to the pool, e.g. 16GiB; the environment variable MOONCAKE_GLOBAL_SEGMENT_SIZE comes
    /// before the file's mooncake_config [default: 0]
    #[arg(long, value_name = "SIZE")]
    pub global_segment_size: Option<ByteSize>,

    /// A mooncake.json with the master's address, the protocol and the memory to lend
    /// [default: the environment variable MOONCAKE_CONFIG_PATH]
    #[arg(long, value_name = "FILE")]
    pub mooncake_config: Option<PathBuf>,

    /// Where other nodes reach this one's memory; an address other than loopback needs a token and certificates
    /// [default: 127.0.0.1:0]
    #[arg(long, value_name = "IP:PORT")]
    pub pool_listen: Option<SocketAddr>,

    /// File with the token that all of the pool share
    #[arg(long, value_name = "FILE")]
    pub pool_token_file: Option<PathBuf>,

    /// PEM file with this node's certificate
    #[arg(long, value_name = "FILE")]
    pub pool_tls_certificate: Option<PathBuf>,

    /// PEM file with the certificate's private key
    #[arg(long, value_name = "FILE")]
    pub pool_tls_key: Option<PathBuf>,

    /// PEM file with the authority that the pool's certificates come from
    #[arg(long, value_name = "FILE")]
    pub pool_tls_authority: Option<PathBuf>,

    /// Nodes that each block is kept on [default: 1]
    #[arg(long, value_name = "N")]
    pub pool_replicas: Option<u32>,

    /// Transports that are tried, in order: shm, rdma, tcp and ascend [default: whichever work of the first three, fastest
    /// first]
    #[arg(long, value_name = "NAME[,NAME]")]
    pub pool_transports: Option<String>,

    /// What the transport ascend is: Plugin(NAME) for a plugged-in transport, e.g. Plugin(hixl)
    #[arg(long, value_name = "TRANSPORT")]
    pub pool_ascend: Option<Word<PluggedTransport>>,

    /// Where plugins lie: NAME.so for each, and SHA256SUMS with the sums of those that may be loaded. Only the user that
    /// runs the daemon, or root, may be able to write there
    #[arg(long, value_name = "DIR")]
    pub plugin_directory: Option<PathBuf>,

    /// A setting of a plugin; may be repeated
    #[arg(long, value_name = "NAME.KEY=VALUE")]
    #[serde(with = "plugin_setting_map")]
    #[schemars(with = "std::collections::BTreeMap<String, String>")]
    pub plugin_setting: Vec<PluginSetting>,

    /// How long an operation or another call of a plugin may take, in milliseconds [default: 5000]
    #[arg(long, value_name = "MS")]
    pub plugin_timeout_ms: Option<u64>,
    /// How long copying what this process lends to other nodes of the pool may take when the daemon is told to stop, in
    /// milliseconds; 0 for not copying [default: 0]
    #[arg(long, value_name = "MS")]
    pub pool_drain_timeout_ms: Option<u64>,

    /// How long a drain may take when the daemon is told to stop, in milliseconds [default: 30000]
    #[arg(long, value_name = "MS")]
    pub drain_timeout_ms: Option<u64>,

    /// How log lines are written: text or json [default: text]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<Word<LogFormat>>,

    /// off, error, warn, info, debug or trace, or TARGET=LEVEL,…; the environment variable KVSTORED_LOG comes before the
    /// file [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<Word<LogLevel>>,
}

impl ServeOptions {
    /// What both forms of a capacity say together. Fails, naming both keys, when both are given.
    fn one_form(
        gibibytes: Option<Gibibytes>,
        bytes: Option<ByteSize>,
        key: &'static str,
    ) -> Result<Option<u64>, String> {
        match (gibibytes, bytes) {
            (Some(gibibytes), Some(bytes)) => Err(format!(
                "{key}_gb ({}) and {key} ({} bytes) are both given; give one",
                gibibytes.0, bytes.0
            )),
            (gibibytes, bytes) => Ok(gibibytes.map(Gibibytes::bytes).or(bytes.map(|bytes| bytes.0))),
        }
    }

    /// The cache buffer's capacity in bytes, whichever form it was given in.
    pub fn cache_capacity_bytes(&self) -> Result<Option<u64>, String> {
        Self::one_form(
            self.cache_buffer_capacity_gb,
            self.cache_buffer_capacity,
            "cache_buffer_capacity",
        )
    }

    /// The storage's capacity in bytes, whichever form it was given in.
    pub fn posix_capacity_bytes(&self) -> Result<Option<u64>, String> {
        Self::one_form(self.posix_capacity_gb, self.posix_capacity, "posix_capacity")
    }

    /// These options, and `below` where these say nothing. A capacity given here hides both forms of it below;
    /// quotas are merged by name.
    #[must_use]
    pub fn over(self, mut below: Self) -> Self {
        if self.cache_buffer_capacity_gb.is_some() || self.cache_buffer_capacity.is_some() {
            (below.cache_buffer_capacity_gb, below.cache_buffer_capacity) = (None, None);
        }
        if self.posix_capacity_gb.is_some() || self.posix_capacity.is_some() {
            (below.posix_capacity_gb, below.posix_capacity) = (None, None);
        }
        Self {
            pipeline: self.pipeline.or(below.pipeline),
            storage_backends: self.storage_backends.or(below.storage_backends),
            cache_buffer_capacity_gb: self.cache_buffer_capacity_gb.or(below.cache_buffer_capacity_gb),
            cache_buffer_capacity: self.cache_buffer_capacity.or(below.cache_buffer_capacity),
            posix_capacity_gb: self.posix_capacity_gb.or(below.posix_capacity_gb),
            posix_capacity: self.posix_capacity.or(below.posix_capacity),
            hbm_device: self.hbm_device.or(below.hbm_device),
            hbm_capacity: self.hbm_capacity.or(below.hbm_capacity),
            listen: self.listen.or(below.listen),
            http: self.http.or(below.http),
            http_allow_remote: self.http_allow_remote.or(below.http_allow_remote),
            eviction_policy: self.eviction_policy.or(below.eviction_policy),
            huge_pages: self.huge_pages.or(below.huge_pages),
            shadow_sample_one_in: self.shadow_sample_one_in.or(below.shadow_sample_one_in),
            posix_io_engine: self.posix_io_engine.or(below.posix_io_engine),
            io_direct: self.io_direct.or(below.io_direct),
            posix_tail_interval_ms: self.posix_tail_interval_ms.or(below.posix_tail_interval_ms),
            posix_segment_bytes: self.posix_segment_bytes.or(below.posix_segment_bytes),
            posix_writer_id: self.posix_writer_id.or(below.posix_writer_id),
            posix_force_sync: self.posix_force_sync.or(below.posix_force_sync),
            posix_high_watermark: self.posix_high_watermark.or(below.posix_high_watermark),
            posix_low_watermark: self.posix_low_watermark.or(below.posix_low_watermark),
            tenant_quota: merged(self.tenant_quota, below.tenant_quota),
            namespace_quota: merged(self.namespace_quota, below.namespace_quota),
            s3_bucket: self.s3_bucket.or(below.s3_bucket),
            s3_prefix: self.s3_prefix.or(below.s3_prefix),
            s3_endpoint: self.s3_endpoint.or(below.s3_endpoint),
            s3_region: self.s3_region.or(below.s3_region),
            s3_allow_http: self.s3_allow_http.or(below.s3_allow_http),
            s3_capacity: self.s3_capacity.or(below.s3_capacity),
            s3_object_bytes: self.s3_object_bytes.or(below.s3_object_bytes),
            s3_tail_interval_ms: self.s3_tail_interval_ms.or(below.s3_tail_interval_ms),
            s3_read_timeout_ms: self.s3_read_timeout_ms.or(below.s3_read_timeout_ms),
            s3_write_timeout_ms: self.s3_write_timeout_ms.or(below.s3_write_timeout_ms),
            pool_master_address: self.pool_master_address.or(below.pool_master_address),
            global_segment_size: self.global_segment_size.or(below.global_segment_size),
            mooncake_config: self.mooncake_config.or(below.mooncake_config),
            pool_listen: self.pool_listen.or(below.pool_listen),
            pool_token_file: self.pool_token_file.or(below.pool_token_file),
            pool_tls_certificate: self.pool_tls_certificate.or(below.pool_tls_certificate),
            pool_tls_key: self.pool_tls_key.or(below.pool_tls_key),
            pool_tls_authority: self.pool_tls_authority.or(below.pool_tls_authority),
            pool_replicas: self.pool_replicas.or(below.pool_replicas),
            pool_transports: self.pool_transports.or(below.pool_transports),
            pool_ascend: self.pool_ascend.or(below.pool_ascend),
            plugin_directory: self.plugin_directory.or(below.plugin_directory),
            plugin_setting: merged_settings(self.plugin_setting, below.plugin_setting),
            plugin_timeout_ms: self.plugin_timeout_ms.or(below.plugin_timeout_ms),
            pool_drain_timeout_ms: self.pool_drain_timeout_ms.or(below.pool_drain_timeout_ms),
            drain_timeout_ms: self.drain_timeout_ms.or(below.drain_timeout_ms),
            log_format: self.log_format.or(below.log_format),
            log_level: self.log_level.or(below.log_level),
        }
    }
}

/// Quotas of both, those above first where both name one.
fn merged(above: Vec<Quota>, mut below: Vec<Quota>) -> Vec<Quota> {
    below.retain(|quota| !above.iter().any(|other| other.name == quota.name));
    below.extend(above);
    below
}

/// Settings of plugins of both, those above first where both name one.
fn merged_settings(above: Vec<PluginSetting>, mut below: Vec<PluginSetting>) -> Vec<PluginSetting> {
    below.retain(|setting| {
        !above
            .iter()
            .any(|other| other.plugin == setting.plugin && other.key == setting.key)
    });
    below.extend(above);
    below
}
