//! How a transfer engine is set up from what Python gives.

use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

use kvstored_core::{Error, Result, Runtime, TransportFactory};
use kvstored_host::config::{Environment, PluggedTransport, PluginOptions, PluginSetting, Word};
use kvstored_host::plugged_transport;
use kvstored_transfer::{EngineSettings, Secret, TlsSettings, TransportKind};
use pyo3::prelude::*;

/// What the transport `ascend` is: a Python object with these attributes.
#[derive(FromPyObject)]
pub struct Plugged {
    plugin: String,
    directory: Option<PathBuf>,
    settings: BTreeMap<String, String>,
    timeout_ms: Option<u64>,
}

impl Plugged {
    /// What opens it when it's first needed. Fails with `InvalidInput` for settings that can't be, and with `Unsupported` where
    /// nothing tries plugins before they are loaded.
    fn factory(self) -> Result<TransportFactory> {
        let named: Word<PluggedTransport> = self.plugin.parse().map_err(Error::invalid)?;
        let settings = self.settings.iter().map(|(name, value)| {
            let text = format!("{name}={value}");
            text.parse::<PluginSetting>().map_err(Error::invalid)
        });
        let options = PluginOptions::without_pipeline(
            self.directory,
            settings.collect::<Result<_>>()?,
            self.timeout_ms,
            &Environment::current(),
        )?;
        plugged_transport(&named.0.0, &options, &Runtime::system())
    }
}

/// An engine that listens at a name and port. Fails with `InvalidInput` for a name without an address, for a transport that
/// there isn't, and when the certificates' files aren't complete.
pub fn engine_settings(
    listen: &str,
    transports: &[String],
    token: Option<Vec<u8>>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    authority: Option<PathBuf>,
    ascend: Option<Plugged>,
) -> Result<EngineSettings> {
    let tls = match (certificate, key, authority) {
        (None, None, None) => None,
        (Some(certificate), Some(key), Some(authority)) => Some(TlsSettings {
            certificate,
            key,
            authority,
            peer_name: None,
        }),
        _ => return Err(Error::invalid("certificate, key and authority go together")),
    };
    let transports: Vec<TransportKind> = transports
        .iter()
        .map(|name| name.parse())
        .collect::<Result<_>>()?;
    // nothing is asked of a plugin that isn't used
    let ascend = ascend.filter(|_| transports.contains(&TransportKind::Ascend));
    Ok(EngineSettings {
        listen: Some(resolve(listen)?),
        token: token.map(Secret::new),
        tls,
        transports,
        ascend: ascend.map(Plugged::factory).transpose()?,
        ..EngineSettings::default()
    })
}

fn resolve(name: &str) -> Result<SocketAddr> {
    let unknown = |why: String| Error::invalid(format!("\"{name}\" is no address to listen on: {why}"));
    let mut addresses = name
        .to_socket_addrs()
        .map_err(|error| unknown(error.to_string()))?;
    addresses
        .next()
        .ok_or_else(|| unknown("the name has none".to_owned()))
}
