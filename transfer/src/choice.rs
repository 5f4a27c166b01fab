//! Which way to a peer: the first transport, in the configured order, that works.

use std::sync::Arc;
use std::time::Instant;

use kvstored_core::{Error, ErrorKind, Result};

use crate::ascend::AscendLink;
use crate::link::Link;
use crate::rdma::RdmaLink;
use crate::settings::TransportKind;
use crate::shared::Shared;
use crate::shm::ShmLink;
use crate::tcp::TcpLink;

/// The link that moves bytes. Sockets, where they come later in the order, take over what another transport can't do.
///
/// Fails with `Unsupported` when none of the configured ones works with the peer.
pub(crate) fn choose(
    shared: &Arc<Shared>,
    control: &Arc<TcpLink>,
    deadline: Instant,
) -> Result<Arc<dyn Link>> {
    let order = shared.settings.order();
    let mut why = Error::new(ErrorKind::Unsupported, "no transport is configured");
    for (index, kind) in order.iter().enumerate() {
        let tcp_follows = order.iter().skip(index).any(|later| *later == TransportKind::Tcp);
        let other = tcp_follows.then(|| control.clone());
        let tried: Result<Arc<dyn Link>> = match kind {
            TransportKind::Tcp => return Ok(control.clone()),
            TransportKind::Shm => {
                ShmLink::attach(shared, control, other, deadline).map(|link| link as Arc<dyn Link>)
            }
            TransportKind::Rdma => {
                RdmaLink::attach(shared, control, other, deadline).map(|link| link as Arc<dyn Link>)
            }
            TransportKind::Ascend => {
                AscendLink::attach(shared, control, other, deadline).map(|link| link as Arc<dyn Link>)
            }
        };
        match tried {
            Ok(link) => return Ok(link),
            Err(error) => {
                tracing::debug!(%error, transport = kind.name(), peer = %control.peer(), "a transport doesn't work");
                why = error;
            }
        }
    }
    Err(Error::new(
        ErrorKind::Unsupported,
        "no configured transport works with the peer",
    )
    .with("because", why))
}
