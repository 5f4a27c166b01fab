//! Joining a pool, and what a member has.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvstored_core::{Result, Runtime};
use kvstored_master::client::{ClientSettings as MasterSettings, ClientTls};
use kvstored_pool::{
    ClientSettings, Directory, MasterDirectory, Membership, NodeId, NodeSettings, PoolClient, whole_key,
};
use kvstored_transfer::EngineSettings;

use super::codes::{INVALID_PARAMETERS, told};
use super::objects::Registered;
use super::staging::Staging;

/// How long joining waits for the master.
const JOIN: Duration = Duration::from_secs(5);
/// How long asking for the nodes may take.
const NODES: Duration = Duration::from_secs(1);
/// The tenant that the others don't have to name.
const DEFAULT_TENANT: &str = "default";

/// A pool's member as long as it is one.
pub struct OpenPool {
    pub client: Arc<PoolClient>,
    pub staging: Arc<Staging>,
    pub registered: Registered,
    pub tenant: String,
    pub runtime: Runtime,
    directory: Arc<dyn Directory>,
    timeout: Duration,
}

impl OpenPool {
    /// The moment by which a call must have ended.
    pub fn deadline(&self) -> Instant {
        self.runtime.deadline(self.timeout)
    }

    /// Keys as the pool knows them, each with its place; the others' outcome is their error's number.
    pub fn keys(&self, keys: &[String], outcomes: &mut [i64]) -> Vec<(usize, Box<[u8]>)> {
        let mut whole = Vec::with_capacity(keys.len());
        for (index, key) in keys.iter().enumerate() {
            match (whole_key(&self.tenant, key.as_bytes()), outcomes.get_mut(index)) {
                (Ok(key), _) => whole.push((index, key)),
                (Err(error), Some(outcome)) => *outcome = told(&error, "an object's key"),
                (Err(_), None) => {}
            }
        }
        whole
    }

    /// Each key's number, from those of the keys that can be.
    pub fn for_each(&self, keys: &[String], answer: impl FnOnce(&[&[u8]]) -> Vec<i64>) -> Vec<i64> {
        let mut outcomes = vec![INVALID_PARAMETERS; keys.len()];
        let whole = self.keys(keys, &mut outcomes);
        let wanted: Vec<&[u8]> = whole.iter().map(|(_, key)| &**key).collect();
        let answers = if wanted.is_empty() {
            Vec::new()
        } else {
            answer(&wanted)
        };
        place(whole.into_iter().map(|(index, _)| index), answers, &mut outcomes);
        outcomes
    }

    /// The node of the first of these names that lends memory.
    pub fn preferred(&self, names: &[String]) -> Option<NodeId> {
        let wanted = names.first()?;
        let (nodes, _) = self.directory.nodes(self.runtime.deadline(NODES)).ok()?;
        nodes
            .iter()
            .find(|node| &*node.engine == wanted)
            .map(|node| node.node)
    }

    /// The node that this process is, if it lends memory.
    pub fn own(&self) -> Option<NodeId> {
        self.client.node().map(|node| node.id())
    }
}

/// What joining takes.
pub struct Joining {
    pub engine: EngineSettings,
    pub masters: Vec<String>,
    pub lent_bytes: u64,
    pub buffer_bytes: usize,
    pub tenant: String,
    pub timeout: Duration,
}

/// Joins. Fails with `Unavailable` or `TimedOut` when no master answers, and as listening and allocating do.
pub fn join(joining: Joining) -> Result<OpenPool> {
    let runtime = Runtime::system();
    let masters = MasterSettings {
        endpoints: joining.masters,
        token: joining.engine.token.as_ref().map(|token| token.expose().to_vec()),
        tls: joining.engine.tls.as_ref().map(|tls| ClientTls {
            authority: tls.authority.clone(),
            identity: Some((tls.certificate.clone(), tls.key.clone())),
            server_name: tls.peer_name.clone(),
        }),
        ..MasterSettings::default()
    };
    let host = joining.engine.listen.map(|address| address.ip().to_string());
    let membership = Membership {
        engine: joining.engine,
        node: NodeSettings {
            segment_bytes: joining.lent_bytes,
            name: format!("{}:{}", host.unwrap_or_default(), std::process::id()),
            ..NodeSettings::default()
        },
        client: ClientSettings::default(),
    };
    let directory = MasterDirectory::new(masters, runtime.clone())?;
    directory.ping(runtime.deadline(JOIN))?;
    let client = membership.join(directory.clone(), runtime.clone())?;
    let ready = || {
        if let Some(node) = client.node() {
            node.wait_mounted(runtime.deadline(JOIN))?;
        }
        Staging::new(client.clone(), joining.buffer_bytes, runtime.clone())
    };
    let staging = ready().inspect_err(|_| client.close())?;
    Ok(OpenPool {
        client,
        staging,
        registered: Registered::default(),
        directory,
        tenant: if joining.tenant == DEFAULT_TENANT {
            String::new()
        } else {
            joining.tenant
        },
        timeout: joining.timeout,
        runtime,
    })
}

/// Puts the answers for some keys in their places.
pub fn place(indices: impl IntoIterator<Item = usize>, answers: Vec<i64>, outcomes: &mut [i64]) {
    for (index, answer) in indices.into_iter().zip(answers) {
        if let Some(outcome) = outcomes.get_mut(index) {
            *outcome = answer;
        }
    }
}
