//! What single checks can't see: settings against one another, and against the machine.

use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};

use kvstored_core::Namespace;
use kvstored_core::size::format_bytes;

use super::environment::Environment;
use super::file::{FileReport, Problem, Severity};
use super::options::ServeOptions;
use super::settings::Origin;
use super::values::{HttpAddress, LogLevel, Meaning};

/// The smallest cache buffer: room for one tiny block and the tables.
const LEAST_CACHE_BYTES: u64 = 64 << 10;
/// The smallest storage capacity per directory.
const LEAST_POSIX_BYTES: u64 = 1 << 20;
/// The longest drain.
pub const MOST_DRAIN_MS: u64 = 3_600_000;
/// What a descriptor page and the tables take beside a block's bytes, at least.
const BLOCK_OVERHEAD_BYTES: u64 = 8192;

/// Collects what is wrong with a set of options.
pub struct Check<'a> {
    file: &'a FileReport,
    /// What was found.
    pub problems: Vec<Problem>,
}

impl<'a> Check<'a> {
    /// Nothing found yet; lines are looked up in that file.
    pub fn new(file: &'a FileReport) -> Self {
        Self {
            file,
            problems: Vec::new(),
        }
    }

    pub(super) fn wrong(&mut self, key: &str, value: impl ToString, message: impl Into<String>) {
        self.problems.push(Problem {
            severity: Severity::Wrong,
            key: key.to_owned(),
            line: self.file.line_of(key),
            value: value.to_string(),
            message: message.into(),
        });
    }

    /// A number between two others.
    pub fn range(&mut self, key: &str, value: u64, least: u64, most: u64) {
        if !(least..=most).contains(&value) {
            self.wrong(key, value, format!("must be {least} to {most}"));
        }
    }

    /// The cache buffer's bytes: at least one block's, at most what the machine can spare.
    pub fn cache_capacity(
        &mut self,
        options: &ServeOptions,
        environment: &Environment,
        keeps_blocks: bool,
        notes: &mut Vec<String>,
    ) -> u64 {
        let (key, value) = match (options.cache_buffer_capacity_gb, options.cache_buffer_capacity) {
            (Some(gibibytes), _) => ("cache_buffer_capacity_gb", gibibytes.0.to_string()),
            (None, Some(bytes)) => ("cache_buffer_capacity", bytes.0.to_string()),
            (None, None) => ("cache_buffer_capacity", String::new()),
        };
        let bytes = match options.cache_capacity_bytes() {
            Ok(Some(bytes)) => bytes,
            Ok(None) => environment.default_cache_bytes(keeps_blocks),
            Err(message) => {
                self.wrong(key, value, message);
                return 0;
            }
        };
        let least = self
            .file
            .block_bytes
            .map_or(0, |block| block.saturating_add(BLOCK_OVERHEAD_BYTES))
            .max(LEAST_CACHE_BYTES);
        if bytes < least {
            let block = self
                .file
                .block_bytes
                .map_or_else(String::new, |block| format!(" of block_size {block}"));
            let message = format!(
                "{bytes} bytes are less than one block{block} needs; at least {least} bytes are needed"
            );
            self.wrong(key, value, message);
            return 0;
        }
        let most = environment.largest_cache_bytes();
        if bytes > most {
            notes.push(format!(
                "{key} {} is more than this machine's memory allows; {} is used",
                format_bytes(bytes),
                format_bytes(most)
            ));
        }
        bytes.min(most)
    }

    /// The storage's bytes (0 is automatic), and whether segments fit in it.
    pub fn posix_capacity(&mut self, options: &ServeOptions, directories: u64) -> u64 {
        let (key, value) = match (options.posix_capacity_gb, options.posix_capacity) {
            (Some(gibibytes), _) => ("posix_capacity_gb", gibibytes.0.to_string()),
            (None, Some(bytes)) => ("posix_capacity", bytes.0.to_string()),
            (None, None) => ("posix_capacity", String::new()),
        };
        let bytes = match options.posix_capacity_bytes() {
            Ok(bytes) => bytes.unwrap_or(0),
            Err(message) => {
                self.wrong(key, value, message);
                return 0;
            }
        };
        let least = LEAST_POSIX_BYTES * directories.max(1);
        if bytes > 0 && bytes < least {
            self.wrong(
                key,
                value,
                format!("{bytes} bytes are too few; at least {least} are needed, or 0 for automatic"),
            );
        }
        if let Some(segment) = options.posix_segment_bytes {
            let (smallest, largest) = (64 << 10, 64 << 30);
            self.range("posix_segment_bytes", segment.0, smallest, largest);
            if bytes > 0 && segment.0.saturating_mul(directories.max(1)) > bytes {
                let message =
                    format!("a segment in each directory doesn't fit in the capacity of {bytes} bytes");
                self.wrong("posix_segment_bytes", segment.0, message);
            }
        }
        bytes
    }

    /// The address of the HTTP endpoints; one that others can reach needs permission.
    pub fn http(&mut self, options: &ServeOptions) -> Option<SocketAddr> {
        let text = match &options.http {
            None => "127.0.0.1:9380",
            Some(word) => match &word.0 {
                HttpAddress::Off => return None,
                HttpAddress::At(text) => text,
            },
        };
        let addresses: Vec<SocketAddr> = match text.to_socket_addrs() {
            Ok(addresses) => addresses.collect(),
            Err(error) => {
                self.wrong("http", text, format!("can't be resolved: {error}"));
                return None;
            }
        };
        let remote = addresses.iter().any(|address| !address.ip().is_loopback());
        if remote && options.http_allow_remote != Some(true) {
            self.wrong(
                "http",
                text,
                "other machines can reach this address; the endpoints are not encrypted and ask for no credentials, and they tell \
                 namespaces, tenants and traffic. Allow it with --http-allow-remote, or use a loopback address",
            );
        }
        addresses.first().copied()
    }

    /// The high and the low watermark.
    pub fn watermarks(&mut self, options: &ServeOptions) -> (f64, f64) {
        let high = options.posix_high_watermark.unwrap_or(0.9);
        let low = options
            .posix_low_watermark
            .unwrap_or_else(|| (high - 0.02).max(high / 2.0));
        if !(low > 0.0 && low <= high && high <= 1.0) {
            let message =
                format!("must be above 0 and at most the high watermark ({high}), and that at most 1");
            self.wrong("posix_low_watermark", low, message);
        }
        (high, low)
    }

    /// Whether quotas name namespaces.
    pub fn namespace_quotas(&mut self, options: &ServeOptions) {
        for quota in &options.namespace_quota {
            if let Err(error) = Namespace::from_hex(&quota.name) {
                self.wrong("namespace_quota", &quota.name, error.message());
            }
        }
    }

    /// The form of a writer's identifier.
    pub fn writer_id(&mut self, id: Option<&str>) {
        if let Some(id) = id
            && (id.len() != 32
                || !id
                    .bytes()
                    .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)))
        {
            self.wrong("posix_writer_id", id, "must be 32 lower-case hexadecimal digits");
        }
    }

    /// What is logged, the environment's word included.
    pub fn log_level(
        &mut self,
        options: &ServeOptions,
        environment: &Environment,
        origins: &BTreeMap<String, Origin>,
    ) -> String {
        let given = options.log_level.as_ref().map(|level| level.0.0.clone());
        match (&environment.log_level, origins.get("log_level")) {
            (Some(level), Some(Origin::Environment)) => {
                if let Err(message) = LogLevel::read(level) {
                    self.wrong("KVSTORED_LOG", level, message);
                }
                level.clone()
            }
            _ => given.unwrap_or_else(|| "info".to_owned()),
        }
    }
}
