//! Clients of the master: asynchronous here, and for callers with threads of their own in [`blocking`].

mod attempts;
pub mod blocking;
mod calls;
mod known;
mod lane;
mod nodes;
mod operators;
mod settings;

use std::time::{Duration, Instant};

use kvstored_core::{Error, ErrorKind, Result, Runtime};
use prost::bytes::Bytes;

use crate::types::{Finished, Found, MAX_ITEMS, NewObject, PutOptions, Status, Ticket};
use crate::wire::{self, Nodes, id_bytes, millis, proto};
use calls::{Calls, Patience};
use known::Known;
pub use settings::{ClientSettings, ClientTls};

/// Asks the master that leads, wherever it is. Nothing is connected before the first call.
///
/// A call that fails as a whole fails with `Unavailable` or `TimedOut` when no master answered, with `PermissionDenied` for
/// a wrong token, and else with what the master says. Batches are answered item by item, in order.
pub struct MasterClient {
    calls: Calls,
    known: Known,
}

impl MasterClient {
    /// Checks the settings and reads the certificates.
    pub fn new(settings: ClientSettings, runtime: Runtime) -> Result<Self> {
        let known = Known::new(settings.known_objects);
        let calls = Calls::new(settings, runtime)?;
        Ok(Self { calls, known })
    }

    /// Begins puts: one outcome each. `AlreadyExists` for an object that is there or being put, `NoSpace`,
    /// `QuotaExceeded`, `TooLarge`, `InvalidInput`, and `Unavailable` where no node lends memory.
    pub async fn start_puts(
        &self,
        puts: &[NewObject<'_>],
        options: &PutOptions,
        deadline: Instant,
    ) -> Result<Vec<Result<Ticket>>> {
        let mut outcomes = Vec::with_capacity(puts.len());
        for part in puts.chunks(MAX_ITEMS) {
            let left = deadline.saturating_duration_since(self.calls.now());
            let message = proto::PutStartRequest {
                objects: part
                    .iter()
                    .map(|put| proto::NewObject {
                        key: Bytes::copy_from_slice(put.key),
                        length: put.length,
                    })
                    .collect(),
                replicas: options.replicas,
                soft_pin: options.soft_pin,
                prefer: options.prefer.as_ref().map(id_bytes).unwrap_or_default(),
                avoid: options.avoid.iter().map(id_bytes).collect(),
                attempt: self.calls.random(),
                wait_ms: millis(options.wait.min(left)),
            };
            let patience = Patience {
                wait: options.wait,
                ..Patience::until(deadline)
            };
            let answer = self
                .calls
                .call_quick(message, patience, |mut client, request| async move {
                    client.put_start(request).await
                })
                .await?;
            let nodes = Nodes::new(answer.nodes)?;
            check_length(answer.items.len(), part.len())?;
            outcomes.extend(answer.items.into_iter().map(|item| match item.outcome {
                Some(proto::put_started::Outcome::Ticket(ticket)) => nodes.ticket(ticket),
                Some(proto::put_started::Outcome::Failure(failure)) => Err(wire::error_of(&failure)),
                None => Err(Error::internal("an item without an outcome")),
            }));
        }
        Ok(outcomes)
    }

    /// Makes objects visible that their nodes hold. `Fenced` for a put that is over; `Unavailable` when it must be asked
    /// again, after the nodes were asked again whether they hold the object.
    pub async fn end_puts(&self, puts: &[Finished<'_>], deadline: Instant) -> Result<Vec<Result<()>>> {
        let mut outcomes = Vec::with_capacity(puts.len());
        for part in puts.chunks(MAX_ITEMS) {
            let one = |put: &Finished<'_>| proto::Finished {
                key: Bytes::copy_from_slice(put.key),
                put: put.put,
                checksum: put.checksum,
                nodes: put.nodes.iter().map(id_bytes).collect(),
                master_epoch: put.master_epoch,
            };
            let message = proto::PutEndRequest {
                puts: part.iter().map(one).collect(),
            };
            let answer = self
                .calls
                .call_quick(
                    message,
                    Patience::until(deadline),
                    |mut client, request| async move { client.put_end(request).await },
                )
                .await?;
            check_length(answer.items.len(), part.len())?;
            outcomes.extend(answer.items.iter().map(wire::from_failure));
        }
        Ok(outcomes)
    }

    /// Gives puts up. Those that are over already are fine.
    pub async fn revoke_puts(&self, puts: &[(&[u8], u64)], deadline: Instant) -> Result<()> {
        for part in puts.chunks(MAX_ITEMS) {
            let one = |(key, put): &(&[u8], u64)| proto::PutName {
                key: Bytes::copy_from_slice(key),
                put: *put,
            };
            let message = proto::PutRevokeRequest {
                puts: part.iter().map(one).collect(),
            };
            self.calls
                .call(
                    message,
                    Patience::until(deadline),
                    |mut client, request| async move { client.put_revoke(request).await },
                )
                .await?;
        }
        Ok(())
    }

    /// Where objects are, with a lease on each. `NotFound` for one that isn't there, and `Unavailable` for one that the
    /// master may not know yet. Where no master answers, last-known locations, if such are kept.
    pub async fn locate(&self, keys: &[&[u8]], deadline: Instant) -> Result<Vec<Result<Found>>> {
        let mut outcomes = Vec::with_capacity(keys.len());
        for part in keys.chunks(MAX_ITEMS) {
            let message = proto::GetRequest { keys: copied(part) };
            let answer = self
                .calls
                .call_quick(
                    message,
                    Patience::until(deadline),
                    |mut client, request| async move { client.get(request).await },
                )
                .await;
            match answer {
                Ok(answer) => {
                    check_length(answer.items.len(), part.len())?;
                    let nodes = Nodes::new(answer.nodes)?;
                    for (key, item) in part.iter().zip(answer.items) {
                        outcomes.push(self.found(key, item, &nodes));
                    }
                }
                Err(error) if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::TimedOut) => {
                    let stale: Vec<Option<Found>> = part.iter().map(|key| self.known.get(key)).collect();
                    if stale.iter().all(Option::is_none) {
                        return Err(error);
                    }
                    outcomes.extend(stale.into_iter().map(|found| found.ok_or_else(|| error.clone())));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(outcomes)
    }

    fn found(&self, key: &[u8], item: proto::GetItem, nodes: &Nodes) -> Result<Found> {
        match item.outcome {
            Some(proto::get_item::Outcome::Found(found)) => {
                let found = nodes.found(found)?;
                self.known.remember(key, &found);
                Ok(found)
            }
            Some(proto::get_item::Outcome::Failure(failure)) => {
                let error = wire::error_of(&failure);
                if error.kind() == ErrorKind::NotFound {
                    self.known.forget(key);
                }
                // a master that is still learning knows less than this client
                match self
                    .known
                    .get(key)
                    .filter(|_| error.kind() == ErrorKind::Unavailable)
                {
                    Some(stale) => Ok(stale),
                    None => Err(error),
                }
            }
            None => Err(Error::internal("an item without an outcome")),
        }
    }

    /// Which objects are there, and for how long at least. With `lease` those that are there are leased.
    pub async fn exist(
        &self,
        keys: &[&[u8]],
        lease: bool,
        deadline: Instant,
    ) -> Result<Vec<Option<Duration>>> {
        let mut outcomes = Vec::with_capacity(keys.len());
        for part in keys.chunks(MAX_ITEMS) {
            let message = proto::ExistRequest {
                keys: copied(part),
                lease,
            };
            let answer = self
                .calls
                .call_quick(
                    message,
                    Patience::until(deadline),
                    |mut client, request| async move { client.exist(request).await },
                )
                .await?;
            check_length(answer.stays_ms_plus_one.len(), part.len())?;
            let one = |stays: u32| {
                stays
                    .checked_sub(1)
                    .map(|stays| Duration::from_millis(u64::from(stays)))
            };
            outcomes.extend(answer.stays_ms_plus_one.into_iter().map(one));
        }
        Ok(outcomes)
    }

    /// Removes objects. `NotFound`, or `Busy` for one that is leased or being put unless forced.
    pub async fn remove(&self, keys: &[&[u8]], force: bool, deadline: Instant) -> Result<Vec<Result<()>>> {
        let mut outcomes = Vec::with_capacity(keys.len());
        for part in keys.chunks(MAX_ITEMS) {
            let message = proto::RemoveRequest {
                keys: copied(part),
                force,
            };
            let answer = self
                .calls
                .call(
                    message,
                    Patience::until(deadline),
                    |mut client, request| async move { client.remove(request).await },
                )
                .await?;
            check_length(answer.items.len(), part.len())?;
            for (key, item) in part.iter().zip(&answer.items) {
                let outcome = wire::from_failure(item);
                if outcome.is_ok() {
                    self.known.forget(key);
                }
                outcomes.push(outcome);
            }
        }
        Ok(outcomes)
    }

    /// Removes every object that isn't leased, or every object, of one tenant or of all. Returns how many.
    pub async fn remove_all(&self, tenant: Option<&str>, force: bool, deadline: Instant) -> Result<u64> {
        let message = proto::RemoveAllRequest {
            tenant: tenant.map(str::to_owned),
            force,
        };
        let patience = Patience {
            wait: deadline.saturating_duration_since(self.calls.now()),
            ..Patience::until(deadline)
        };
        let answer = self
            .calls
            .call(message, patience, |mut client, request| async move {
                client.remove_all(request).await
            })
            .await?;
        Ok(answer.removed)
    }

    /// The numbers of the master that answers first, whether it leads or not.
    pub async fn status(&self, deadline: Instant) -> Result<Status> {
        let answer = self
            .calls
            .call(
                proto::StatusRequest {},
                Patience::until(deadline),
                |mut client, request| async move { client.status(request).await },
            )
            .await?;
        Ok(wire::to_status_numbers(answer))
    }
}

fn copied(keys: &[&[u8]]) -> Vec<Bytes> {
    keys.iter().map(|key| Bytes::copy_from_slice(key)).collect()
}

fn check_length(found: usize, expected: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::internal(format!("{found} outcomes for {expected} items")))
}
