//! The client for callers with threads of their own.
//!
//! The calling thread drives the connection itself while it waits, so that a call costs no hop between threads. Calls from
//! several threads go on side by side, and then one of them drives for all. What puts and gets wait for goes by the fast
//! lane, where connections aren't encrypted.

use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use kvstored_core::{Error, Result, Runtime};

use super::ClientSettings;
use crate::types::{
    Drained, Finished, Found, Holding, Lender, Mounted, Moves, NewObject, NodeId, NodeStatus, ObjectPage,
    Orders, PutOptions, Status, Ticket,
};

/// See [`super::MasterClient`], whose calls these are. Must not be called from inside an asynchronous executor.
pub struct MasterClient {
    client: super::MasterClient,
    /// `None` only while it's dropped.
    executor: Option<tokio::runtime::Runtime>,
}

macro_rules! calls {
    ($($(#[doc = $doc:literal])* $name:ident($($argument:ident: $kind:ty),*) -> $answer:ty;)*) => {
        impl MasterClient {
            $($(#[doc = $doc])* pub fn $name(&self, $($argument: $kind,)* deadline: Instant) -> Result<$answer> {
                self.run(self.client.$name($($argument,)* deadline))
            })*
        }
    };
}

calls! {
    /// Begins puts.
    start_puts(puts: &[NewObject<'_>], options: &PutOptions) -> Vec<Result<Ticket>>;
    /// Makes objects visible that their nodes hold.
    end_puts(puts: &[Finished<'_>]) -> Vec<Result<()>>;
    /// Gives puts up.
    revoke_puts(puts: &[(&[u8], u64)]) -> ();
    /// Where objects are, with a lease on each.
    locate(keys: &[&[u8]]) -> Vec<Result<Found>>;
    /// Which objects are there, and for how long at least.
    exist(keys: &[&[u8]], lease: bool) -> Vec<Option<Duration>>;
    /// Removes objects.
    remove(keys: &[&[u8]], force: bool) -> Vec<Result<()>>;
    /// Removes all objects, or all of one tenant.
    remove_all(tenant: Option<&str>, force: bool) -> u64;
    /// The numbers of the master that answers first.
    status() -> Status;
    /// A node lends memory.
    mount(lender: &Lender) -> Mounted;
    /// A node announces everything that it holds.
    announce(node: &NodeId, epoch: u64, holdings: &[Holding]) -> ();
    /// A node shows that it's alive, confirms ranges as free, and takes orders.
    heartbeat(node: &NodeId, epoch: u64, released: &[u64], wait: Duration) -> Orders;
    /// What a node that is being emptied is to copy where.
    start_moves(node: &NodeId, epoch: u64, avoid: &[NodeId]) -> Moves;
    /// A node takes its memory back.
    unmount(node: &NodeId) -> ();
    /// The nodes.
    nodes() -> Vec<NodeStatus>;
    /// The nodes, and whether those are all.
    known_nodes() -> (Vec<NodeStatus>, bool);
    /// A page of objects.
    objects(after: u64, limit: u32, tenant: Option<&str>) -> ObjectPage;
    /// Empties a node.
    drain(node: &NodeId, evict: bool, undo: bool) -> Drained;
}

impl MasterClient {
    /// Checks the settings and reads the certificates.
    pub fn new(settings: ClientSettings, runtime: Runtime) -> Result<Self> {
        let mut client = super::MasterClient::new(settings, runtime)?;
        client.calls.take_lane()?;
        let executor = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(|error| Error::from_io(error, "can't start the client's executor"))?;
        Ok(Self {
            client,
            executor: Some(executor),
        })
    }

    fn run<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        let Some(executor) = &self.executor else {
            return Err(Error::internal("a call on a client that is gone"));
        };
        let mut call = std::pin::pin!(call);
        {
            // the fast lane ends a call at the first look; nobody else waits for the connections meanwhile
            let _inside = executor.enter();
            let mut context = Context::from_waker(Waker::noop());
            if let Poll::Ready(outcome) = call.as_mut().poll(&mut context) {
                return outcome;
            }
        }
        executor.block_on(call)
    }
}

impl Drop for MasterClient {
    fn drop(&mut self) {
        if let Some(executor) = self.executor.take() {
            // its connections just go
            executor.shutdown_background();
        }
    }
}
