//! The flags of `kvstored master`: those of `mooncake_master`, with underscores or hyphens, and some more.

#[cfg(test)]
mod tests;
mod without_effect;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use kvstored_core::size::parse_bytes;
use kvstored_core::{Error, Result};
use kvstored_host::config::LogFormat;
use kvstored_master::MasterSettings;
use kvstored_master::server::{HaSettings, ServerSettings, ServerTls};

use without_effect::WithoutEffect;

/// The longest token, in bytes.
const MAX_TOKEN_BYTES: u64 = 4096;

/// Arguments of `kvstored master`.
#[derive(Clone, Debug, clap::Args)]
pub struct MasterArguments {
    /// Port of the control plane; 0 takes a free one
    #[arg(
        long,
        alias = "rpc-port",
        alias = "rpc_port",
        value_name = "PORT",
        default_value_t = 50088
    )]
    port: u16,

    /// Address of the control plane; one other than loopback needs a token and certificates
    #[arg(long, alias = "rpc_address", value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    rpc_address: IpAddr,

    /// Where other masters' clients reach this one, if not at the address above
    #[arg(long, alias = "advertise_address", value_name = "HOST:PORT")]
    advertise_address: Option<String>,

    /// Port of health, metrics and administration over HTTP; 0 takes a free one, `off` none
    #[arg(long, alias = "metrics_port", value_name = "PORT|off", default_value = "9003", value_parser = metrics_port)]
    metrics_port: MetricsPort,

    /// Address of the metrics port
    #[arg(long, alias = "metrics_address", value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    metrics_address: IpAddr,

    /// Allow a metrics address that other machines can reach. What is there isn't encrypted, and administration is off
    #[arg(long, alias = "metrics_allow_remote", value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", default_value = "false", value_parser = truth)]
    metrics_allow_remote: bool,

    /// Part of all lent bytes above which objects are evicted
    #[arg(
        long,
        alias = "eviction_high_watermark_ratio",
        value_name = "RATIO",
        default_value_t = 0.95
    )]
    eviction_high_watermark_ratio: f64,

    /// Part of all lent bytes that is evicted at once
    #[arg(long, alias = "eviction_ratio", value_name = "RATIO", default_value_t = 0.05)]
    eviction_ratio: f64,

    /// How long an object that was asked for stays where it is, in milliseconds
    #[arg(
        long,
        alias = "default_kv_lease_ttl",
        value_name = "MS",
        default_value_t = 5000
    )]
    default_kv_lease_ttl: u64,

    /// How long a soft-pinned object is spared after its last use, in milliseconds
    #[arg(
        long,
        alias = "default_kv_soft_pin_ttl",
        value_name = "MS",
        default_value_t = 1_800_000
    )]
    default_kv_soft_pin_ttl: u64,

    /// Whether soft-pinned objects may go when nothing else is left
    #[arg(long, alias = "allow_evict_soft_pinned_objects", value_name = "BOOL", num_args = 0..=1,
        require_equals = true, default_missing_value = "true", default_value = "true", value_parser = truth)]
    allow_evict_soft_pinned_objects: bool,

    /// How long a node may be silent before what it holds is given up, in seconds
    #[arg(long, alias = "client_ttl", value_name = "SECONDS", default_value_t = 10)]
    client_ttl: u64,

    /// How long a put may take, in seconds
    #[arg(
        long,
        alias = "put_start_discard_timeout_sec",
        value_name = "SECONDS",
        default_value_t = 30
    )]
    put_start_discard_timeout_sec: u64,

    /// One of several masters that elect a leader by etcd
    #[arg(long, alias = "enable_ha", value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", default_value = "false", value_parser = truth)]
    enable_ha: bool,

    /// Addresses of etcd, separated by commas or semicolons
    #[arg(long, alias = "etcd_endpoints", value_name = "HOST:PORT[,HOST:PORT]")]
    etcd_endpoints: Option<String>,

    /// Masters with the same name elect one leader
    #[arg(
        long,
        alias = "cluster_id",
        value_name = "NAME",
        default_value = "mooncake_cluster"
    )]
    cluster_id: String,

    /// How long a leader that is dead or cut off stays leader, in seconds
    #[arg(long, alias = "leader_lease_ttl", value_name = "SECONDS", default_value_t = 5)]
    leader_lease_ttl: u64,

    /// File with the certificates that etcd's must come from
    #[arg(long, alias = "etcd_tls_authority", value_name = "FILE")]
    etcd_tls_authority: Option<PathBuf>,

    /// File with the certificate that etcd is shown
    #[arg(
        long,
        alias = "etcd_tls_certificate",
        value_name = "FILE",
        requires = "etcd_tls_key"
    )]
    etcd_tls_certificate: Option<PathBuf>,

    /// File with that certificate's key
    #[arg(
        long,
        alias = "etcd_tls_key",
        value_name = "FILE",
        requires = "etcd_tls_certificate"
    )]
    etcd_tls_key: Option<PathBuf>,

    /// File with the token that all of the pool share
    #[arg(long, alias = "token_file", value_name = "FILE")]
    token_file: Option<PathBuf>,

    /// File with this master's certificate
    #[arg(long, alias = "tls_certificate", value_name = "FILE", requires = "tls_key")]
    tls_certificate: Option<PathBuf>,

    /// File with the certificate's key
    #[arg(long, alias = "tls_key", value_name = "FILE", requires = "tls_certificate")]
    tls_key: Option<PathBuf>,

    /// File with the certificates that clients' must come from; without it clients show none
    #[arg(
        long,
        alias = "tls_authority",
        value_name = "FILE",
        requires = "tls_certificate"
    )]
    tls_authority: Option<PathBuf>,

    /// Bound of the bytes of each tenant that has none of its own
    #[arg(long, alias = "tenant_quota", value_name = "SIZE", value_parser = parse_bytes)]
    tenant_quota: Option<u64>,

    /// Bound of one tenant's bytes; may be given several times
    #[arg(long, alias = "tenant_quotas", value_name = "TENANT=SIZE", value_parser = named_quota)]
    tenant_quotas: Vec<(String, u64)>,

    /// Format of the log
    #[arg(long, alias = "log_format", value_name = "text|json", default_value = "text", value_parser = log_format)]
    log_format: LogFormat,

    /// What is logged: error, warn, info, debug or trace [default: info, or $KVSTORED_LOG]
    #[arg(long, alias = "log_level", value_name = "LEVEL")]
    log_level: Option<String>,

    #[command(flatten)]
    without_effect: WithoutEffect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MetricsPort {
    Off,
    At(u16),
}

/// What the flags come to.
pub(super) struct Settings {
    pub server: ServerSettings,
    pub master: MasterSettings,
    pub metrics: Option<SocketAddr>,
    pub log_format: LogFormat,
    pub log_level: Option<String>,
    /// Flags that have no effect.
    pub without_effect: Vec<&'static str>,
}

impl MasterArguments {
    /// Fails with `InvalidInput`, naming the wrong flag, and as reading the token does.
    pub(super) fn settings(self) -> Result<Settings> {
        let without_effect = self.without_effect.given();
        let metrics = match self.metrics_port {
            MetricsPort::Off => None,
            MetricsPort::At(port) => Some(SocketAddr::new(self.metrics_address, port)),
        };
        if let Some(address) = metrics
            && !address.ip().to_canonical().is_loopback()
            && !self.metrics_allow_remote
        {
            return Err(Error::invalid(format!(
                "metrics_address {address} can be reached by other machines; allow it with --metrics-allow-remote"
            )));
        }
        let mut master = MasterSettings {
            eviction_high_watermark_ratio: self.eviction_high_watermark_ratio,
            eviction_ratio: self.eviction_ratio,
            lease: Duration::from_millis(self.default_kv_lease_ttl),
            soft_pin: Duration::from_millis(self.default_kv_soft_pin_ttl),
            allow_evict_soft_pinned: self.allow_evict_soft_pinned_objects,
            client_ttl: Duration::from_secs(self.client_ttl),
            put_discard: Duration::from_secs(self.put_start_discard_timeout_sec),
            ..MasterSettings::default()
        };
        master.quotas.default_tenant_bytes = self.tenant_quota;
        master.quotas.tenants.extend(self.tenant_quotas.iter().cloned());
        master.check()?;
        let tls = self.tls_certificate.clone().zip(self.tls_key.clone());
        let server = ServerSettings {
            listen: SocketAddr::new(self.rpc_address, self.port),
            advertise: self.advertise_address.clone(),
            token: self.token_file.as_deref().map(read_token).transpose()?,
            tls: tls.map(|(certificate, key)| ServerTls {
                certificate,
                key,
                client_authority: self.tls_authority.clone(),
            }),
            ha: self.ha()?,
            ..ServerSettings::default()
        };
        server.check()?;
        Ok(Settings {
            server,
            master,
            metrics,
            log_format: self.log_format,
            log_level: self.log_level,
            without_effect,
        })
    }

    fn ha(&self) -> Result<Option<HaSettings>> {
        if !self.enable_ha {
            return Ok(None);
        }
        let endpoints = self.etcd_endpoints.as_deref().unwrap_or_default();
        let endpoints: Vec<String> = endpoints
            .split([',', ';'])
            .map(|address| address.trim().to_owned())
            .filter(|address| !address.is_empty())
            .collect();
        if endpoints.is_empty() {
            return Err(Error::invalid("enable_ha needs etcd_endpoints"));
        }
        Ok(Some(HaSettings {
            endpoints,
            cluster: self.cluster_id.clone(),
            lease: Duration::from_secs(self.leader_lease_ttl),
            authority: self.etcd_tls_authority.clone(),
            identity: self.etcd_tls_certificate.clone().zip(self.etcd_tls_key.clone()),
        }))
    }
}

/// Reads a token's file: one line, without its end. Fails with `InvalidInput` for one that is too long, and as reading
/// files does.
pub(crate) fn read_token(path: &std::path::Path) -> Result<Vec<u8>> {
    use std::io::Read;
    let failed = |error| Error::from_io(error, "the token can't be read").with("path", path.display());
    let mut token = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(MAX_TOKEN_BYTES + 1)
        .read_to_end(&mut token)
        .map_err(failed)?;
    let trimmed = token.trim_ascii();
    if trimmed.is_empty() || token.len() as u64 > MAX_TOKEN_BYTES {
        return Err(
            Error::invalid(format!("a token has 1 to {MAX_TOKEN_BYTES} bytes")).with("path", path.display()),
        );
    }
    Ok(trimmed.to_vec())
}

fn metrics_port(text: &str) -> Result<MetricsPort> {
    if text == "off" {
        return Ok(MetricsPort::Off);
    }
    let port = text
        .parse()
        .map_err(|_| Error::invalid("not a port and not \"off\""))?;
    Ok(MetricsPort::At(port))
}

fn truth(text: &str) -> Result<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "t" | "y" => Ok(true),
        "false" | "0" | "no" | "f" | "n" => Ok(false),
        _ => Err(Error::invalid("not true or false")),
    }
}

fn named_quota(text: &str) -> Result<(String, u64)> {
    let wrong = || Error::invalid("not TENANT=SIZE");
    let (tenant, size) = text.split_once('=').ok_or_else(wrong)?;
    Ok((tenant.to_owned(), parse_bytes(size)?))
}

fn log_format(text: &str) -> Result<LogFormat> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(Error::invalid("neither text nor json")),
    }
}
