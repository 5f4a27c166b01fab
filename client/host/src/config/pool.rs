//! The pool's settings: ours, and those of a mooncake.json.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use kvstored_core::Pipeline;
use kvstored_core::pipeline::is_plugin_name;
use kvstored_core::size::format_bytes;
use kvstored_transfer::{TlsSettings, TransportKind};
use serde::Deserialize;

use super::environment::Environment;
use super::options::ServeOptions;
use super::sizes::ByteSize;
use super::validate::Check;
use super::values::Meaning;

/// The largest mooncake.json that is read.
const MOST_FILE_BYTES: u64 = 1 << 20;
/// Most copies of one block.
const MOST_REPLICAS: u64 = 16;
/// The longest that a daemon may go on for its lent memory's sake.
const MOST_DRAIN_MS: u64 = 3_600_000;

/// How this process takes part in a pool. Plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolSettings {
    /// Where masters answer; at least one.
    pub masters: Vec<String>,
    /// Bytes that this process lends; 0 for none.
    pub segment_bytes: u64,
    /// Where other nodes reach this one.
    pub listen: SocketAddr,
    /// File with the pool's token.
    pub token_file: Option<PathBuf>,
    /// Certificates.
    pub tls: Option<TlsSettings>,
    /// Nodes that each block is kept on.
    pub replicas: u32,
    /// Transports in the order in which they are tried; empty takes whichever work.
    pub transports: Vec<TransportKind>,
    /// How long copying what it lends to other nodes may take at the end, in milliseconds; 0 for not copying.
    pub drain_timeout_ms: u64,
    /// The plugin that the transport `ascend` is.
    pub ascend: Option<String>,
}

/// A plugged-in transport, by its plugin's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluggedTransport(pub String);

impl fmt::Display for PluggedTransport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Plugin({})", self.0)
    }
}

impl Meaning for PluggedTransport {
    fn read(text: &str) -> Result<Self, String> {
        text.strip_prefix("Plugin(")
            .and_then(|rest| rest.strip_suffix(')'))
            .filter(|name| is_plugin_name(name))
            .map(|name| Self(name.to_owned()))
            .ok_or_else(|| format!("transport \"{text}\" is unknown; it is Plugin(NAME), e.g. Plugin(hixl)"))
    }
}

/// mooncake.json, as its deployments have it. Unknown keys are left alone.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct MooncakeFile {
    metadata_server: Option<String>,
    protocol: Option<String>,
    master_server_address: Option<String>,
    global_segment_size: Option<ByteSize>,
}

impl MooncakeFile {
    fn read(path: &Path) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("can't be read: {error}");
        let length = std::fs::metadata(path).map_err(failed)?.len();
        if length > MOST_FILE_BYTES {
            return Err(format!("has {length} bytes; a mooncake.json has a few hundred"));
        }
        let text = std::fs::read_to_string(path).map_err(failed)?;
        serde_json::from_str(&text).map_err(|error| format!("is no mooncake.json: {error}"))
    }
}

impl PoolSettings {
    /// Puts our settings over the environment over mooncake.json.
    pub(super) fn resolve(
        options: &ServeOptions,
        environment: &Environment,
        check: &mut Check<'_>,
        notes: &mut Vec<String>,
    ) -> Option<Self> {
        let path = options
            .mooncake_config
            .as_ref()
            .or(environment.mooncake_config.as_ref());
        let file = match path.map(|path| (path, MooncakeFile::read(path))) {
            None => MooncakeFile::default(),
            Some((_, Ok(file))) => file,
            Some((path, Err(message))) => {
                check.wrong("mooncake_config", path.display(), message);
                return None;
            }
        };
        if let Some(server) = file
            .metadata_server
            .as_deref()
            .filter(|server| *server != "P2PHANDSHAKE")
        {
            notes.push(format!(
                "metadata_server {server} has no effect: nodes find each other through the master"
            ));
        }
        let given = options.pool_master_address.as_ref();
        let masters: Vec<String> = given
            .or(environment.mooncake_master.as_ref())
            .or(file.master_server_address.as_ref())
            .map(|text| split(text))
            .unwrap_or_default();
        if masters.is_empty() {
            check.wrong(
                "pool_master_address",
                "",
                "a pipeline with a Pool needs the address of its master",
            );
        }
        let segment_bytes = Self::segment_bytes(options, environment, &file, check)?;
        let listen = options
            .pool_listen
            .unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        let replicas = options.pool_replicas.unwrap_or(1);
        check.range("pool_replicas", u64::from(replicas), 1, MOST_REPLICAS);
        let drain_timeout_ms = options.pool_drain_timeout_ms.unwrap_or(0);
        check.range("pool_drain_timeout_ms", drain_timeout_ms, 0, MOST_DRAIN_MS);
        let tls = Self::tls(options, check);
        if !listen.ip().is_loopback() && (tls.is_none() || options.pool_token_file.is_none()) {
            check.wrong(
                "pool_listen",
                listen,
                "other machines can reach this address: give pool_token_file and the pool_tls_ files, or use a loopback address",
            );
        }
        Some(Self {
            masters,
            segment_bytes,
            listen,
            token_file: options.pool_token_file.clone(),
            tls,
            replicas,
            transports: Self::transports(options, &file, check, notes),
            drain_timeout_ms,
            ascend: options.pool_ascend.as_ref().map(|word| word.0.0.clone()),
        })
    }

    fn segment_bytes(
        options: &ServeOptions,
        environment: &Environment,
        file: &MooncakeFile,
        check: &mut Check<'_>,
    ) -> Option<u64> {
        let from_environment = match &environment.mooncake_global_segment_size {
            None => None,
            Some(text) => match text.parse::<ByteSize>() {
                Ok(size) => Some(size),
                Err(message) => {
                    check.wrong("MOONCAKE_GLOBAL_SEGMENT_SIZE", text, message);
                    return None;
                }
            },
        };
        let given = options
            .global_segment_size
            .or(from_environment)
            .or(file.global_segment_size);
        let bytes = given.map_or(0, |size| size.0);
        let most = environment.largest_cache_bytes();
        if bytes > most {
            check.wrong(
                "global_segment_size",
                bytes,
                format!("more than the {} that this machine can spare", format_bytes(most)),
            );
        }
        Some(bytes)
    }

    fn tls(options: &ServeOptions, check: &mut Check<'_>) -> Option<TlsSettings> {
        let files = (
            &options.pool_tls_certificate,
            &options.pool_tls_key,
            &options.pool_tls_authority,
        );
        match files {
            (Some(certificate), Some(key), Some(authority)) => Some(TlsSettings {
                certificate: certificate.clone(),
                key: key.clone(),
                authority: authority.clone(),
                peer_name: None,
            }),
            (None, None, None) => None,
            _ => {
                check.wrong(
                    "pool_tls_certificate",
                    "",
                    "pool_tls_certificate, pool_tls_key and pool_tls_authority belong together",
                );
                None
            }
        }
    }

    fn transports(
        options: &ServeOptions,
        file: &MooncakeFile,
        check: &mut Check<'_>,
        notes: &mut Vec<String>,
    ) -> Vec<TransportKind> {
        let (key, text) = match (&options.pool_transports, &file.protocol) {
            (Some(text), _) => ("pool_transports", text),
            (None, Some(text)) => ("protocol", text),
            (None, None) => return Vec::new(),
        };
        match text.as_str() {
            "auto" | "" => return Vec::new(),
            // as in Mooncake, and with sockets behind it
            "ascend" if options.pool_ascend.is_some() => {
                return vec![TransportKind::Ascend, TransportKind::Tcp];
            }
            "ascend" => {
                notes.push(format!(
                    "{key} ascend can't be honoured without pool_ascend; whichever transports work are used"
                ));
                return Vec::new();
            }
            _ => {}
        }
        let parsed: Result<Vec<TransportKind>, _> = split(text).iter().map(|word| word.parse()).collect();
        let transports = parsed.unwrap_or_else(|error: kvstored_core::Error| {
            check.wrong(key, text, error.message());
            Vec::new()
        });
        if transports.contains(&TransportKind::Ascend) && options.pool_ascend.is_none() {
            check.wrong(key, text, "transport ascend needs pool_ascend");
        }
        transports
    }

    /// Says which settings have no effect because the pipeline has no pool.
    pub(super) fn note_without_pool(options: &ServeOptions, pipeline: &Pipeline, notes: &mut Vec<String>) {
        let given = [
            ("pool_master_address", options.pool_master_address.is_some()),
            ("global_segment_size", options.global_segment_size.is_some()),
            ("mooncake_config", options.mooncake_config.is_some()),
            ("pool_listen", options.pool_listen.is_some()),
            ("pool_replicas", options.pool_replicas.is_some()),
            ("pool_transports", options.pool_transports.is_some()),
            ("pool_drain_timeout_ms", options.pool_drain_timeout_ms.is_some()),
            ("pool_ascend", options.pool_ascend.is_some()),
        ];
        for (key, _) in given.iter().filter(|(_, given)| *given) {
            notes.push(format!(
                "{key} has no effect: pipeline {pipeline} has no Pool tier"
            ));
        }
    }

    /// Every setting as name and value, for the log.
    pub(super) fn rows(&self) -> Vec<(&'static str, String)> {
        let path = |path: &PathBuf| path.display().to_string();
        let transports: Vec<&str> = self.transports.iter().map(|kind| kind.name()).collect();
        vec![
            ("pool_master_address", self.masters.join(",")),
            ("global_segment_size", format_bytes(self.segment_bytes)),
            ("pool_listen", self.listen.to_string()),
            (
                "pool_token_file",
                self.token_file.as_ref().map(path).unwrap_or_default(),
            ),
            (
                "pool_tls_certificate",
                self.tls
                    .as_ref()
                    .map(|tls| path(&tls.certificate))
                    .unwrap_or_default(),
            ),
            ("pool_replicas", self.replicas.to_string()),
            (
                "pool_transports",
                if transports.is_empty() {
                    "auto".to_owned()
                } else {
                    transports.join(",")
                },
            ),
            ("pool_drain_timeout_ms", self.drain_timeout_ms.to_string()),
            (
                "pool_ascend",
                self.ascend
                    .as_ref()
                    .map(|name| format!("Plugin({name})"))
                    .unwrap_or_default(),
            ),
        ]
    }
}

/// The parts of a list with commas or semicolons, as masters that stand in for each other are written.
fn split(text: &str) -> Vec<String> {
    let parts = text.split([',', ';']).map(str::trim);
    parts.filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use crate::config::Environment;
    use crate::config::tests::resolve_with;

    fn environment() -> Environment {
        Environment {
            memory_bytes: 64 << 30,
            ..Environment::default()
        }
    }

    fn file(text: &str) -> (tempfile::TempDir, String) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mooncake.json");
        std::fs::write(&path, text).unwrap();
        let path = path.display().to_string();
        (directory, path)
    }

    const SEED: &str = r#"{"metadata_server": "P2PHANDSHAKE", "protocol": "ascend", "device_name": "",
        "master_server_address": "host:50088", "global_segment_size": "1GB"}"#;

    #[test]
    fn a_mooncake_file_is_taken_as_it_is() {
        let (_directory, path) = file(SEED);
        let arguments = ["--pipeline", "Cache|Pool|Posix", "--mooncake-config", &path];
        let settings = resolve_with(&arguments, "", &environment()).unwrap();
        let pool = settings.pool.unwrap();
        assert_eq!(pool.masters, ["host:50088"]);
        assert_eq!(pool.segment_bytes, 1_000_000_000);
        assert!(pool.transports.is_empty());
        assert!(
            settings.notes.iter().any(|note| note.contains("ascend")),
            "{:?}",
            settings.notes
        );
    }

    #[test]
    fn ascend_is_a_plugin_with_sockets_behind_it() {
        let (_directory, path) = file(SEED);
        let mut arguments = vec!["--pipeline", "Cache|Pool", "--mooncake-config", &path];
        arguments.extend(["--pool-ascend", "Plugin(hixl)"]);
        let problems = resolve_with(&arguments, "", &environment()).unwrap_err();
        let keys: Vec<_> = problems.iter().map(|problem| problem.key.as_str()).collect();
        assert_eq!(keys, ["plugin_directory"]);
        arguments.extend(["--plugin-directory", "/opt/plugins"]);
        arguments.extend(["--plugin-setting", "hixl.address=10.0.0.1"]);
        let settings = resolve_with(&arguments, "", &environment()).unwrap();
        assert_eq!(settings.notes, Vec::<String>::new());
        assert_eq!(settings.plugins.unwrap().settings.len(), 1);
        let pool = settings.pool.unwrap();
        assert_eq!(pool.ascend.as_deref(), Some("hixl"));
        let names: Vec<&str> = pool.transports.iter().map(|kind| kind.name()).collect();
        assert_eq!(names, ["ascend", "tcp"]);
        let without = ["--pipeline", "Cache|Pool", "--mooncake-config", &path];
        let without = [&without[..], &["--pool-transports", "ascend,tcp"]].concat();
        let problems = resolve_with(&without, "", &environment()).unwrap_err();
        assert_eq!(problems[0].key, "pool_transports");
    }

    #[test]
    fn flags_come_before_the_environment_and_that_before_the_file() {
        let (_directory, path) = file(SEED);
        let mut machine = environment();
        machine.mooncake_config = Some(path.into());
        machine.mooncake_master = Some("other:1,third:2".into());
        machine.mooncake_global_segment_size = Some("2GiB".into());
        let pool = resolve_with(&["--pipeline", "Cache|Pool"], "", &machine)
            .unwrap()
            .pool
            .unwrap();
        assert_eq!(pool.masters, ["other:1", "third:2"]);
        assert_eq!(pool.segment_bytes, 2 << 30);
        let flags = [
            "--pipeline",
            "Cache|Pool",
            "--pool-master-address",
            "flag:3",
            "--global-segment-size",
            "1MiB",
        ];
        let pool = resolve_with(&flags, "", &machine).unwrap().pool.unwrap();
        assert_eq!(
            (pool.masters, pool.segment_bytes),
            (vec!["flag:3".to_owned()], 1 << 20)
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        let (_directory, broken) = file("{");
        for (arguments, word) in [
            (vec![], "pool_master_address"),
            (
                vec!["--mooncake-config", "/nowhere/mooncake.json"],
                "mooncake_config",
            ),
            (vec!["--mooncake-config", &broken], "mooncake_config"),
            (
                vec!["--pool-master-address", "a:1", "--pool-listen", "0.0.0.0:1"],
                "pool_listen",
            ),
            (
                vec!["--pool-master-address", "a:1", "--pool-transports", "udp"],
                "pool_transports",
            ),
            (
                vec!["--pool-master-address", "a:1", "--pool-replicas", "0"],
                "pool_replicas",
            ),
            (
                vec![
                    "--pool-master-address",
                    "a:1",
                    "--pool-drain-timeout-ms",
                    "3600001",
                ],
                "pool_drain_timeout_ms",
            ),
            (
                vec!["--pool-master-address", "a:1", "--pool-tls-key", "k"],
                "pool_tls_certificate",
            ),
            (
                vec!["--pool-master-address", "a:1", "--global-segment-size", "64GiB"],
                "global_segment_size",
            ),
        ] {
            let mut all = vec!["--pipeline", "Cache|Pool"];
            all.extend(arguments);
            let problems = resolve_with(&all, "", &environment()).unwrap_err();
            assert!(
                problems.iter().any(|problem| problem.key == word),
                "{word}: {problems:?}"
            );
        }
    }

    #[test]
    fn without_a_pool_its_settings_are_noted() {
        let settings = resolve_with(&["--global-segment-size", "1GiB"], "", &environment()).unwrap();
        assert!(settings.pool.is_none());
        assert!(
            settings
                .notes
                .iter()
                .any(|note| note.contains("global_segment_size")),
            "{:?}",
            settings.notes
        );
    }
}
