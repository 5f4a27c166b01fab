//! What can be set. Plain data.

use std::time::Duration;

use kvstored_core::{Error, Result};

/// The smallest object that blocks are gathered for.
pub const LEAST_OBJECT_BYTES: u64 = 64 << 10;
/// The largest.
pub const MOST_OBJECT_BYTES: u64 = 1 << 30;

/// How the tier uses a bucket. Credentials are none of it: they come from the environment, as with every S3 client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Settings {
    /// The bucket, which has to be there.
    pub bucket: String,
    /// What every key begins with; processes with the same bucket and prefix share their blocks.
    pub prefix: String,
    /// Address of the service; `None` takes `AWS_ENDPOINT_URL` or AWS itself.
    pub endpoint: Option<String>,
    /// Region; `None` takes `AWS_REGION`.
    pub region: Option<String>,
    /// Whether the service may be spoken to without TLS.
    pub allow_http: bool,
    /// Bound of the bytes below the prefix, all writers together.
    pub capacity_bytes: u64,
    /// An object is closed when it has at least this many bytes.
    pub object_bytes: u64,
    /// Objects of more than two of these go up in parts of this size.
    pub part_bytes: u64,
    /// How long an object waits for further blocks.
    pub batch_delay: Duration,
    /// How often the bucket is asked for other writers' objects.
    pub tail_interval: Duration,
    /// How often everything is listed, to notice what others deleted and what came late.
    pub full_interval: Duration,
    /// How long a load may take, retries included.
    pub read_timeout: Duration,
    /// How long a dump may take, retries included.
    pub write_timeout: Duration,
    /// Blocks that lie side by side are fetched together up to this many bytes.
    pub range_bytes: u64,
    /// Requests for blocks under way at once.
    pub most_reads: usize,
    /// Objects on their way up at once.
    pub most_uploads: usize,
    /// Operations that may wait or be under way; more are refused as busy.
    pub queue_depth: usize,
    /// Bytes of blocks that may wait to be stored or be on their way; more are refused as busy.
    pub write_buffer_bytes: u64,
    /// Part of the reads, in percent, that may be asked for twice when the answer is late; 0 for none.
    pub hedge_percent: u32,
    /// Threads that drive the connections.
    pub threads: usize,
}

impl Default for S3Settings {
    fn default() -> Self {
        Self {
            bucket: String::new(),
            prefix: String::new(),
            endpoint: None,
            region: None,
            allow_http: false,
            capacity_bytes: 1 << 40,
            object_bytes: 32 << 20,
            part_bytes: 8 << 20,
            batch_delay: Duration::from_millis(50),
            tail_interval: Duration::from_secs(1),
            full_interval: Duration::from_mins(1),
            read_timeout: Duration::from_secs(5),
            write_timeout: Duration::from_mins(1),
            range_bytes: 8 << 20,
            most_reads: 32,
            most_uploads: 8,
            queue_depth: 8192,
            write_buffer_bytes: 512 << 20,
            hedge_percent: 5,
            threads: 2,
        }
    }
}

impl S3Settings {
    /// What is wrong, by the setting's name; `None` if nothing is.
    pub fn problem(&self) -> Option<(&'static str, String)> {
        let (object, capacity) = (self.object_bytes, self.capacity_bytes);
        if self.bucket.is_empty() {
            return Some(("s3_bucket", "a pipeline with an S3 tier needs a bucket".into()));
        }
        if object_store::path::Path::parse(&self.prefix).is_err() {
            return Some(("s3_prefix", format!("\"{}\" is no prefix of keys", self.prefix)));
        }
        if !(LEAST_OBJECT_BYTES..=MOST_OBJECT_BYTES).contains(&object) {
            let what = format!("{object} bytes; {LEAST_OBJECT_BYTES} to {MOST_OBJECT_BYTES} are accepted");
            return Some(("s3_object_bytes", what));
        }
        if capacity < 4 * object {
            let what = format!("{capacity} bytes hold fewer than four objects of {object} bytes");
            return Some(("s3_capacity", what));
        }
        [
            ("s3_tail_interval_ms", self.tail_interval),
            ("s3_read_timeout_ms", self.read_timeout),
            ("s3_write_timeout_ms", self.write_timeout),
        ]
        .into_iter()
        .find(|(_, time)| time.is_zero())
        .map(|(name, _)| (name, "must be above 0".into()))
    }

    /// Fails with `InvalidInput`, naming the setting, if something is wrong.
    pub fn validate(&self) -> Result<()> {
        match self.problem() {
            Some((name, what)) => Err(Error::invalid(what).with("setting", name)),
            None => Ok(()),
        }
    }

    /// How far behind its name's time an object may still appear: the longest upload twice over, and clocks that differ.
    pub(crate) fn late_by(&self) -> Duration {
        self.write_timeout * 2 + Duration::from_mins(1)
    }
}
