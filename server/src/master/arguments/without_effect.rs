//! Flags of `mooncake_master` that mean nothing here.

/// Flags of `mooncake_master` that mean nothing here.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct WithoutEffect {
    #[arg(long, hide = true, alias = "max_threads")]
    max_threads: Option<String>,
    #[arg(long, hide = true, alias = "rpc_thread_num")]
    rpc_thread_num: Option<String>,
    #[arg(long, hide = true, alias = "rpc_conn_timeout_seconds")]
    rpc_conn_timeout_seconds: Option<String>,
    #[arg(long, hide = true, alias = "rpc_enable_tcp_no_delay", num_args = 0..=1, default_missing_value = "true")]
    rpc_enable_tcp_no_delay: Option<String>,
    #[arg(long, hide = true, alias = "enable_metric_reporting", num_args = 0..=1, default_missing_value = "true")]
    enable_metric_reporting: Option<String>,
    #[arg(long, hide = true, alias = "put_start_release_timeout_sec")]
    put_start_release_timeout_sec: Option<String>,
    #[arg(long, hide = true, alias = "memory_allocator")]
    memory_allocator: Option<String>,
    #[arg(long, hide = true, alias = "enable_http_metadata_server", num_args = 0..=1, default_missing_value = "true")]
    enable_http_metadata_server: Option<String>,
    #[arg(long, hide = true, alias = "http_metadata_server_port")]
    http_metadata_server_port: Option<String>,
    #[arg(long, hide = true, alias = "http_metadata_server_host")]
    http_metadata_server_host: Option<String>,
    #[arg(long, hide = true, alias = "root_fs_dir")]
    root_fs_dir: Option<String>,
    #[arg(long, hide = true, alias = "global_file_segment_size")]
    global_file_segment_size: Option<String>,
}

impl WithoutEffect {
    /// Those that were given.
    pub(super) fn given(&self) -> Vec<&'static str> {
        let all = [
            ("max_threads", &self.max_threads),
            ("rpc_thread_num", &self.rpc_thread_num),
            ("rpc_conn_timeout_seconds", &self.rpc_conn_timeout_seconds),
            ("rpc_enable_tcp_no_delay", &self.rpc_enable_tcp_no_delay),
            ("enable_metric_reporting", &self.enable_metric_reporting),
            (
                "put_start_release_timeout_sec",
                &self.put_start_release_timeout_sec,
            ),
            ("memory_allocator", &self.memory_allocator),
            ("enable_http_metadata_server", &self.enable_http_metadata_server),
            ("http_metadata_server_port", &self.http_metadata_server_port),
            ("http_metadata_server_host", &self.http_metadata_server_host),
            ("root_fs_dir", &self.root_fs_dir),
            ("global_file_segment_size", &self.global_file_segment_size),
        ];
        all.into_iter()
            .filter(|(_, value)| value.is_some())
            .map(|(name, _)| name)
            .collect()
    }
}
