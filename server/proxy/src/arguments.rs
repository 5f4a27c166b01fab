//! The flags of `kvstored proxy`: those of the example it stands in for, and its own.

use std::path::PathBuf;

use clap::Args;

/// Route completion requests to prefill and decode instances.
#[derive(Clone, Debug, Args)]
pub struct ProxyArguments {
    /// Address to listen on: an IP address or `localhost`
    #[arg(long, value_name = "HOST", default_value = "localhost")]
    pub host: String,

    /// Port to listen on; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 8000)]
    pub port: u16,

    /// Hosts of the prefill instances, one for each port
    #[arg(long, value_name = "HOST", num_args = 1.., default_value = "localhost")]
    pub prefiller_hosts: Vec<String>,

    /// Ports of the prefill instances, one for each host
    #[arg(long, value_name = "PORT", num_args = 1.., default_value = "8001")]
    pub prefiller_ports: Vec<u16>,

    /// Where the prefill instances publish their KV events (ZeroMQ), one for each
    #[arg(long, value_name = "HOST:PORT", num_args = 1..)]
    pub prefiller_kv_events: Vec<String>,

    /// Where the prefill instances send past KV events again, one for each
    #[arg(long, value_name = "HOST:PORT", num_args = 1..)]
    pub prefiller_kv_replays: Vec<String>,

    /// Hosts of the decode instances, one for each port
    #[arg(long, value_name = "HOST", num_args = 1.., default_value = "localhost")]
    pub decoder_hosts: Vec<String>,

    /// Ports of the decode instances, one for each host
    #[arg(long, value_name = "PORT", num_args = 1.., default_value = "8002")]
    pub decoder_ports: Vec<u16>,

    /// How often a leg (prefill or decode) of a request is tried in all
    #[arg(long, value_name = "TIMES", default_value_t = 3)]
    pub max_retries: u32,

    /// Pause before the second try, doubled for each further one
    #[arg(
        long,
        value_name = "SECONDS",
        allow_negative_numbers = true,
        default_value_t = 0.001
    )]
    pub retry_delay: f64,

    /// How often an instance added at run time is looked for before it is given up
    #[arg(long, value_name = "TIMES", default_value_t = 3)]
    pub max_waiting_retries: u32,

    /// Pause between looking for an instance added at run time
    #[arg(
        long,
        value_name = "SECONDS",
        allow_negative_numbers = true,
        default_value_t = 10.0
    )]
    pub waiting_retry_interval: f64,

    /// Threads that serve; they share all state
    #[arg(long, value_name = "THREADS", default_value_t = 1)]
    pub workers: usize,

    /// What to log: DEBUG, INFO, WARNING, ERROR or CRITICAL
    #[arg(long, value_name = "LEVEL", default_value = "INFO")]
    pub log_level: String,

    /// File with the token that admin routes ask for; without it they answer only where the proxy listens on loopback
    #[arg(long, value_name = "FILE")]
    pub admin_token_file: Option<PathBuf>,

    /// Connections of clients at once; further ones wait in the system's queue
    #[arg(long, value_name = "COUNT", default_value_t = 16_384)]
    pub max_connections: usize,

    /// The largest request body
    #[arg(long, value_name = "BYTES", default_value_t = 32 << 20)]
    pub max_body_bytes: usize,

    /// Bytes of all request bodies at once; further requests are told to come again
    #[arg(long, value_name = "BYTES", default_value_t = 512 << 20)]
    pub max_held_bytes: usize,

    /// How long connecting to an instance may take
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 3_000)]
    pub connect_timeout_ms: u64,

    /// How long a prefill may take
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 300_000)]
    pub prefill_timeout_ms: u64,

    /// How long a decode instance may take to pull the KV and send the first event of a stream
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 300_000)]
    pub first_event_timeout_ms: u64,

    /// How long a stream may pause between two events
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 120_000)]
    pub event_timeout_ms: u64,

    /// How long a request may take in all
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 3_600_000)]
    pub request_timeout_ms: u64,

    /// How long a client may take to send a request, or to take what is sent to it
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 60_000)]
    pub client_timeout_ms: u64,

    /// Pause between health checks of an instance
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 5_000)]
    pub health_interval_ms: u64,

    /// How long a health check may take
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 2_000)]
    pub health_timeout_ms: u64,

    /// How long requests under way may take once the proxy is told to stop
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 30_000)]
    pub drain_timeout_ms: u64,

    /// Prompt chunks whose prefill instance is remembered; 0 routes by load alone
    #[arg(long, value_name = "COUNT", default_value_t = 131_072)]
    pub affinity_chunks: usize,

    /// Let a prefill instance keep KV that nobody will pull until its own lease ends
    #[arg(long)]
    pub no_abandon: bool,
}
