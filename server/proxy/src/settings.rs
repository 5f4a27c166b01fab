//! Settings: what the flags say, checked and in their own types.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use kvstored_core::{Error, Result};

use crate::address::{Address, canonical};
use crate::arguments::ProxyArguments;
use crate::events::EventSource;

/// The longest pause a flag in seconds may ask for.
const MAX_PAUSE_SECONDS: f64 = 86_400.0;
/// The longest token file that is read.
const MAX_TOKEN_BYTES: u64 = 4096;
/// Threads at most.
const MAX_WORKERS: usize = 1024;

/// What the proxy does, as plain data.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Prefill instances at the start.
    pub prefillers: Vec<Address>,
    /// Where the prefill instances tell what they store and remove: of all of them or of none.
    pub kv_events: Vec<EventSource>,
    /// Decode instances at the start.
    pub decoders: Vec<Address>,
    /// Tries of one leg, at least one.
    pub tries: u32,
    /// Pause before the second try.
    pub retry_delay: Duration,
    /// Checks of an instance that was added at run time.
    pub waiting_tries: u32,
    /// Pause between those checks.
    pub waiting_interval: Duration,
    /// Serving threads.
    pub workers: usize,
    /// Filter of the log, in the words of the log library.
    pub log_filter: &'static str,
    /// Digest of the admin token, if there is one.
    pub admin_token: Option<blake3::Hash>,
    /// Connections of clients at once.
    pub max_connections: usize,
    /// Largest request body.
    pub max_body_bytes: usize,
    /// All request bodies at once.
    pub max_held_bytes: usize,
    /// Connecting to an instance.
    pub connect_timeout: Duration,
    /// A whole prefill.
    pub prefill_timeout: Duration,
    /// Pull and first event of a stream.
    pub first_event_timeout: Duration,
    /// Pause between two events.
    pub event_timeout: Duration,
    /// A whole request.
    pub request_timeout: Duration,
    /// A client's request or its taking of the answer.
    pub client_timeout: Duration,
    /// Pause between health checks.
    pub health_interval: Duration,
    /// One health check.
    pub health_timeout: Duration,
    /// Requests under way at shutdown.
    pub drain_timeout: Duration,
    /// Prompt chunks remembered.
    pub affinity_chunks: usize,
    /// Whether KV that nobody will pull is given up at once.
    pub abandon: bool,
}

impl Settings {
    /// Checks the flags. An error names the flag and the value.
    pub fn new(arguments: &ProxyArguments) -> Result<Self> {
        let milliseconds = |flag: &str, value: u64| {
            if value == 0 {
                return Err(Error::invalid(format!("{flag} 0: a time limit must be positive")));
            }
            Ok(Duration::from_millis(value))
        };
        let a = arguments;
        Ok(Self {
            listen: SocketAddr::new(listen_ip(&a.host)?, a.port),
            prefillers: instances("prefiller", &a.prefiller_hosts, &a.prefiller_ports)?,
            kv_events: event_sources(a)?,
            decoders: instances("decoder", &a.decoder_hosts, &a.decoder_ports)?,
            tries: a.max_retries.max(1),
            retry_delay: seconds("--retry-delay", a.retry_delay)?,
            waiting_tries: a.max_waiting_retries.max(1),
            waiting_interval: seconds("--waiting-retry-interval", a.waiting_retry_interval)?
                .max(Duration::from_millis(10)),
            workers: count("--workers", a.workers)?.min(MAX_WORKERS),
            log_filter: log_filter(&a.log_level)?,
            admin_token: a.admin_token_file.as_deref().map(read_token).transpose()?,
            max_connections: count("--max-connections", a.max_connections)?,
            max_body_bytes: count("--max-body-bytes", a.max_body_bytes)?,
            max_held_bytes: count("--max-held-bytes", a.max_held_bytes)?.max(a.max_body_bytes),
            connect_timeout: milliseconds("--connect-timeout-ms", a.connect_timeout_ms)?,
            prefill_timeout: milliseconds("--prefill-timeout-ms", a.prefill_timeout_ms)?,
            first_event_timeout: milliseconds("--first-event-timeout-ms", a.first_event_timeout_ms)?,
            event_timeout: milliseconds("--event-timeout-ms", a.event_timeout_ms)?,
            request_timeout: milliseconds("--request-timeout-ms", a.request_timeout_ms)?,
            client_timeout: milliseconds("--client-timeout-ms", a.client_timeout_ms)?,
            health_interval: milliseconds("--health-interval-ms", a.health_interval_ms)?,
            health_timeout: milliseconds("--health-timeout-ms", a.health_timeout_ms)?,
            drain_timeout: Duration::from_millis(a.drain_timeout_ms),
            affinity_chunks: a.affinity_chunks,
            abandon: !a.no_abandon,
        })
    }
}

fn count(flag: &str, value: usize) -> Result<usize> {
    if value == 0 {
        return Err(Error::invalid(format!("{flag} 0: at least 1 is needed")));
    }
    Ok(value)
}

fn seconds(flag: &str, value: f64) -> Result<Duration> {
    if (0.0..=MAX_PAUSE_SECONDS).contains(&value) {
        Ok(Duration::from_secs_f64(value))
    } else {
        Err(Error::invalid(format!(
            "{flag} {value}: seconds from 0 to {MAX_PAUSE_SECONDS} are possible"
        )))
    }
}

fn listen_ip(host: &str) -> Result<IpAddr> {
    let name = canonical(host).map_err(|error| Error::invalid(format!("--host: {}", error.message())))?;
    if name == "localhost" {
        return Ok(Ipv4Addr::LOCALHOST.into());
    }
    name.parse()
        .map_err(|_| Error::invalid(format!("--host {host}: an IP address or localhost is needed")))
}

fn instances(role: &str, hosts: &[String], ports: &[u16]) -> Result<Vec<Address>> {
    if hosts.len() != ports.len() {
        return Err(Error::invalid(format!(
            "--{role}-hosts has {} values ({}) and --{role}-ports has {} ({}): one port for each host is needed",
            hosts.len(),
            hosts.join(" "),
            ports.len(),
            ports.iter().map(u16::to_string).collect::<Vec<_>>().join(" "),
        )));
    }
    let mut found: Vec<Address> = Vec::with_capacity(hosts.len());
    for (host, port) in hosts.iter().zip(ports) {
        let address = Address::new(host, *port).map_err(|error| {
            Error::invalid(format!("--{role}-hosts, --{role}-ports: {}", error.message()))
        })?;
        if found.contains(&address) {
            return Err(Error::invalid(format!(
                "--{role}-hosts, --{role}-ports: the instance {address} is listed twice"
            )));
        }
        found.push(address);
    }
    Ok(found)
}

fn event_sources(a: &ProxyArguments) -> Result<Vec<EventSource>> {
    let (events, replays) = (&a.prefiller_kv_events, &a.prefiller_kv_replays);
    for (flag, values, wanted) in [
        ("--prefiller-kv-events", events, a.prefiller_hosts.len()),
        ("--prefiller-kv-replays", replays, events.len()),
    ] {
        if !values.is_empty() && values.len() != wanted {
            let whose = if flag == "--prefiller-kv-events" {
                "prefill instance"
            } else {
                "value of --prefiller-kv-events"
            };
            return Err(Error::invalid(format!(
                "{flag} has {} values ({}): one for each {whose} is needed, which are {wanted}",
                values.len(),
                values.join(" "),
            )));
        }
    }
    let address = |flag: &str, text: &String| {
        Address::parse(text).map_err(|error| Error::invalid(format!("{flag}: {}", error.message())))
    };
    let mut replays = replays.iter();
    events
        .iter()
        .map(|text| {
            Ok(EventSource {
                events: address("--prefiller-kv-events", text)?,
                replay: replays
                    .next()
                    .map(|text| address("--prefiller-kv-replays", text))
                    .transpose()?,
            })
        })
        .collect()
}

fn log_filter(level: &str) -> Result<&'static str> {
    match level.to_ascii_uppercase().as_str() {
        "TRACE" => Ok("trace"),
        "DEBUG" => Ok("debug"),
        "INFO" => Ok("info"),
        "WARN" | "WARNING" => Ok("warn"),
        "ERROR" | "CRITICAL" => Ok("error"),
        _ => Err(Error::invalid(format!(
            "--log-level {level}: DEBUG, INFO, WARNING, ERROR or CRITICAL is needed"
        ))),
    }
}

/// Only the token's digest is kept.
fn read_token(path: &Path) -> Result<blake3::Hash> {
    let failed =
        |error| Error::from_io(error, "--admin-token-file can't be read").with("path", path.display());
    let length = std::fs::metadata(path).map_err(failed)?.len();
    if length > MAX_TOKEN_BYTES {
        return Err(Error::invalid(format!(
            "--admin-token-file {}: {length} bytes is too long for a token",
            path.display()
        )));
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    let token = text.trim();
    if token.is_empty() {
        return Err(Error::invalid(format!(
            "--admin-token-file {}: the file is empty",
            path.display()
        )));
    }
    Ok(blake3::hash(token.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        arguments: ProxyArguments,
    }

    fn parse(line: &str) -> Result<Settings> {
        let words = std::iter::once("proxy").chain(line.split_whitespace());
        let cli = Cli::try_parse_from(words).map_err(|error| Error::invalid(error.to_string()))?;
        Settings::new(&cli.arguments)
    }

    #[test]
    fn the_seed_s_own_command_line_is_taken() {
        let settings = parse(
            "--port 7850 --host 0.0.0.0 \
             --prefiller-hosts 192.168.10.1 192.168.10.1 192.168.10.2 192.168.10.2 \
             --prefiller-ports 9000  9001 9000 9001 \
             --decoder-hosts 192.168.10.3 192.168.10.3 192.168.10.4 192.168.10.4 \
             --decoder-ports 9000 9001 9000 9001",
        )
        .unwrap();
        assert_eq!(settings.listen, "0.0.0.0:7850".parse().unwrap());
        let names: Vec<String> = settings.decoders.iter().map(Address::to_string).collect();
        assert_eq!(
            names,
            [
                "192.168.10.3:9000",
                "192.168.10.3:9001",
                "192.168.10.4:9000",
                "192.168.10.4:9001"
            ]
        );
        assert_eq!(settings.prefillers.len(), 4);
        assert_eq!(settings.retry_delay, Duration::from_millis(1));
        assert_eq!(settings.waiting_interval, Duration::from_secs(10));
    }

    #[test]
    fn ipv6_comes_with_and_without_brackets() {
        let settings = parse(
            "--host :: --prefiller-hosts ::1 [fd00::2] --prefiller-ports 9000 9000 \
             --decoder-hosts ::1 --decoder-ports 9100",
        )
        .unwrap();
        assert_eq!(settings.listen.to_string(), "[::]:8000");
        assert_eq!(settings.prefillers[1].to_string(), "[fd00::2]:9000");
    }

    #[test]
    fn a_wrong_flag_is_named_with_its_value() {
        for (line, parts) in [
            (
                "--prefiller-hosts a b --prefiller-ports 1",
                &["--prefiller-hosts", "a b", "--prefiller-ports", "1"][..],
            ),
            (
                "--decoder-hosts a --decoder-ports 1 2",
                &["--decoder-hosts", "--decoder-ports", "1 2"],
            ),
            (
                "--decoder-hosts a A --decoder-ports 7 7",
                &["--decoder-hosts", "a:7", "twice"],
            ),
            (
                "--prefiller-hosts ::1 [0:0::1] --prefiller-ports 7 7",
                &["--prefiller-hosts", "[::1]:7", "twice"],
            ),
            (
                "--prefiller-kv-events a:1 b:2",
                &["--prefiller-kv-events", "a:1 b:2", "1"],
            ),
            ("--prefiller-kv-events a", &["--prefiller-kv-events", "\"a\""]),
            (
                "--prefiller-kv-events a:1 --prefiller-kv-replays a:0",
                &["--prefiller-kv-replays", "port 0"],
            ),
            ("--prefiller-kv-replays a:1", &["--prefiller-kv-replays", "a:1"]),
            ("--prefiller-hosts a/b", &["--prefiller-hosts", "a/b"]),
            ("--decoder-ports 0", &["--decoder-ports", "port 0"]),
            ("--decoder-ports 70000", &["--decoder-ports", "70000"]),
            ("--retry-delay -1", &["--retry-delay", "-1"]),
            ("--retry-delay inf", &["--retry-delay", "inf"]),
            ("--log-level loud", &["--log-level", "loud"]),
            ("--host nowhere.example", &["--host", "nowhere.example"]),
            ("--event-timeout-ms 0", &["--event-timeout-ms", "0"]),
            ("--workers 0", &["--workers", "0"]),
            (
                "--admin-token-file /nowhere/token",
                &["--admin-token-file", "/nowhere/token"],
            ),
        ] {
            let error = parse(line).unwrap_err().to_string();
            for part in parts {
                assert!(error.contains(part), "{line}: {part} in {error}");
            }
        }
    }

    #[test]
    fn a_token_is_kept_as_its_digest() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let line = format!("--admin-token-file {}", file.path().display());
        assert!(parse(&line).unwrap_err().to_string().contains("empty"));
        std::fs::write(file.path(), "secret\n").unwrap();
        let settings = parse(&line).unwrap();
        assert_eq!(settings.admin_token, Some(blake3::hash(b"secret")));
        assert!(!format!("{settings:?}").contains("secret"));
    }
}
