//! What `kvstored ctl pool` is told.

use std::path::PathBuf;

use kvstored_core::Result;
use kvstored_host::config::Environment;
use kvstored_master::client::{ClientSettings, ClientTls};

use crate::master::read_token;

use super::{drain, list};

/// Where a master listens unless told otherwise.
const DEFAULT_MASTER: &str = "127.0.0.1:50088";

/// Arguments of `kvstored ctl pool`.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// The masters [default: $MOONCAKE_MASTER, or 127.0.0.1:50088]
    #[arg(long, value_name = "HOST:PORT[,HOST:PORT]", global = true)]
    master: Option<String>,

    /// File with the pool's token
    #[arg(long, value_name = "FILE", global = true)]
    token_file: Option<PathBuf>,

    /// File with the certificates that masters' must come from
    #[arg(long, value_name = "FILE", global = true)]
    tls_authority: Option<PathBuf>,

    /// File with the certificate that masters are shown
    #[arg(long, value_name = "FILE", global = true)]
    tls_certificate: Option<PathBuf>,

    /// File with that certificate's key
    #[arg(long, value_name = "FILE", global = true)]
    tls_key: Option<PathBuf>,

    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Clone, Debug, clap::Subcommand)]
pub(super) enum Command {
    /// The pool's numbers
    Stat,
    /// Objects, with where they are and what holds them there
    Ls(list::Arguments),
    /// Nodes that lend memory
    Segments,
    /// Empty a node, so that it can be taken away: it copies what it holds to other nodes. Objects for which there is no
    /// room stay there; --evict takes everything away without copies
    Drain(drain::Arguments),
}

impl Arguments {
    /// How to reach the master. Fails as reading the token does.
    pub(super) fn client_settings(&self, environment: &Environment) -> Result<ClientSettings> {
        let masters = self.master.as_deref().or(environment.mooncake_master.as_deref());
        let masters = masters.unwrap_or(DEFAULT_MASTER).split([',', ';']);
        let endpoints = masters.map(|address| address.trim().to_owned());
        Ok(ClientSettings {
            endpoints: endpoints.filter(|address| !address.is_empty()).collect(),
            token: self.token_file.as_deref().map(read_token).transpose()?,
            tls: self.tls_authority.as_ref().map(|authority| ClientTls {
                authority: authority.clone(),
                identity: self.tls_certificate.clone().zip(self.tls_key.clone()),
                server_name: None,
            }),
            ..ClientSettings::default()
        })
    }
}
