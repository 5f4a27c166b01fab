//! The tier `Pool` from its settings.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kvstored_core::{Error, Result, Runtime};
use kvstored_master::client::{ClientSettings as MasterSettings, ClientTls};
use kvstored_pool::{ClientSettings, MasterDirectory, Membership, NodeSettings, PoolTier, TierSettings};
use kvstored_transfer::{EngineSettings, Secret};

use super::plugin::transport_factory;
use crate::config::{PluginOptions, PoolSettings};

/// The longest token that is read.
const MOST_TOKEN_BYTES: u64 = 4096;

/// Joins the pool. Neither the master nor any other node has to be there yet.
///
/// Fails with `InvalidInput` for a token that can't be, and as reading certificates, listening and allocating the lent
/// memory do.
pub(super) fn open_pool(
    settings: &PoolSettings,
    plugins: Option<&PluginOptions>,
    runtime: &Runtime,
) -> Result<Arc<PoolTier>> {
    let ascend = settings.ascend.as_deref().zip(plugins);
    let ascend = ascend.map(|(name, options)| transport_factory(name, options, runtime));
    let token = settings.token_file.as_deref().map(read_token).transpose()?;
    let masters = MasterSettings {
        endpoints: settings.masters.clone(),
        token: token.as_ref().map(|token| token.expose().to_vec()),
        tls: settings.tls.as_ref().map(|tls| ClientTls {
            authority: tls.authority.clone(),
            identity: Some((tls.certificate.clone(), tls.key.clone())),
            server_name: tls.peer_name.clone(),
        }),
        ..MasterSettings::default()
    };
    let membership = Membership {
        engine: EngineSettings {
            listen: Some(settings.listen),
            token,
            tls: settings.tls.clone(),
            transports: settings.transports.clone(),
            ascend,
            ..EngineSettings::default()
        },
        node: NodeSettings {
            segment_bytes: settings.segment_bytes,
            name: host_name(),
            ..NodeSettings::default()
        },
        client: ClientSettings {
            replicas: settings.replicas,
            ..ClientSettings::default()
        },
    };
    let directory = MasterDirectory::new(masters, runtime.clone())?;
    let client = membership.join(directory, runtime.clone())?;
    let tier = TierSettings {
        drain_timeout: Duration::from_millis(settings.drain_timeout_ms),
        ..TierSettings::default()
    };
    PoolTier::start(&tier, client, runtime)
}

/// A token as people keep it: a line in a file.
fn read_token(path: &Path) -> Result<Secret> {
    let failed = |error| {
        Error::from_io(error, "the pool's token can't be read").with("pool_token_file", path.display())
    };
    let length = std::fs::metadata(path).map_err(failed)?.len();
    let bytes = std::fs::read(path).map_err(failed)?;
    let token = bytes.trim_ascii();
    if length > MOST_TOKEN_BYTES || token.is_empty() {
        let message = format!(
            "a token of {} bytes; 1 to {MOST_TOKEN_BYTES} are accepted",
            token.len()
        );
        return Err(Error::invalid(message).with("pool_token_file", path.display()));
    }
    Ok(Secret::new(token))
}

fn host_name() -> String {
    let name = rustix::system::uname();
    format!("{}:{}", name.nodename().to_string_lossy(), std::process::id())
}
