//! Issues grants, and decides at each use whether they hold.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use kvstored_core::{Error, ErrorKind, Result, Runtime};
use parking_lot::RwLock;

use crate::grant::{Grant, GrantKey, GrantRequest, Terms};
use crate::handshake::Identity;
use crate::identity::{EngineId, PublicationId};
use crate::memory::{PublicationState, Span, Table};

/// Past so many revoked grants, those that have expired are forgotten.
const REVOKED_BEFORE_CLEANING: usize = 1024;

/// A range that somebody may touch, found to be so just now.
#[derive(Debug)]
pub(crate) struct Permitted {
    pub publication: Arc<PublicationState>,
    pub offset_in_region: u64,
    pub length: u64,
}

impl Permitted {
    /// Counts the operation in. Fails with `Fenced` when the memory went meanwhile.
    pub fn enter(&self) -> Result<Span> {
        Span::served(&self.publication, self.offset_in_region, self.length as usize).ok_or_else(released)
    }
}

fn released() -> Error {
    Error::new(ErrorKind::Fenced, "the memory was released or unregistered")
}

fn denied(why: &str) -> Error {
    Error::new(ErrorKind::PermissionDenied, why)
}

/// Makes and checks the grants of one engine.
pub(crate) struct Authority {
    identity: Arc<Identity>,
    table: Arc<Table>,
    runtime: Runtime,
    started: Instant,
    serial: AtomicU64,
    /// Serials of revoked grants, with their expiry.
    revoked: RwLock<HashMap<u64, u64>>,
}

impl Authority {
    pub fn new(identity: Arc<Identity>, table: Arc<Table>, runtime: Runtime) -> Self {
        Self {
            identity,
            table,
            started: runtime.clock.now(),
            runtime,
            serial: AtomicU64::new(1),
            revoked: RwLock::default(),
        }
    }

    /// The key of one peer's grants.
    pub fn key(&self, peer: EngineId) -> GrantKey {
        GrantKey::new(self.identity.grant_secret(), peer)
    }

    /// Nanoseconds since the engine's start, by the steady clock.
    fn now(&self) -> u64 {
        let since = self.runtime.clock.now().saturating_duration_since(self.started);
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }

    /// Grants a range. Fails with `Fenced` when the publication was released, `NotFound` when there never was one, and
    /// `InvalidInput` for a range that is empty or outside.
    pub fn issue(&self, request: GrantRequest) -> Result<Grant> {
        let publication = self.publication(request.publication)?;
        let end = request.offset.checked_add(request.length);
        if request.length == 0 || end.is_none_or(|end| end > publication.length) {
            return Err(Error::invalid(format!(
                "bytes {}+{} are outside a publication of {} bytes",
                request.offset, request.length, publication.length
            )));
        }
        let lasts = u64::try_from(request.expires_in.as_nanos()).unwrap_or(u64::MAX);
        let terms = Terms {
            request,
            server: self.identity.id(),
            epoch: publication.epoch,
            expiry: self.now().saturating_add(lasts),
            serial: self.serial.fetch_add(1, Ordering::Relaxed),
        };
        Ok(self.key(request.peer).make(&terms))
    }

    /// The publication. Fails with `Fenced` when it's being released or was, and with `NotFound`.
    pub fn publication(&self, id: PublicationId) -> Result<Arc<PublicationState>> {
        match self.table.publication(id) {
            Some(state) if state.usage.is_closed() || state.region.usage.is_closed() => Err(released()),
            Some(state) => Ok(state),
            None if self.table.knew(id.value()) => Err(released()),
            None => {
                Err(Error::new(ErrorKind::NotFound, "no such publication").with("publication", id.value()))
            }
        }
    }

    /// From now on the grant is worthless. Operations that it allowed before go on.
    pub fn revoke(&self, grant: &Grant) {
        if grant.server() != self.identity.id() || !self.key(grant.peer()).made(grant) {
            return;
        }
        let mut revoked = self.revoked.write();
        if revoked.len() >= REVOKED_BEFORE_CLEANING && revoked.len().is_power_of_two() {
            let now = self.now();
            revoked.retain(|_, expiry| *expiry > now);
        }
        revoked.insert(grant.serial(), grant.expiry());
    }

    /// Decides whether `peer`, whose key that is, may touch `length` bytes at `offset` of the grant's range.
    ///
    /// Fails with `PermissionDenied` for a grant that isn't genuine, is another's, has expired, was revoked or doesn't
    /// allow it, with `InvalidInput` for a range outside, and with `Fenced` when the memory was released.
    pub fn check(
        &self,
        grant: &Grant,
        peer: EngineId,
        key: &GrantKey,
        writes: bool,
        offset: u64,
        length: u64,
    ) -> Result<Permitted> {
        self.check_holds(grant, peer, key)?;
        let rights = grant.rights();
        if !(if writes {
            rights.may_write()
        } else {
            rights.may_read()
        }) {
            return Err(denied("the grant doesn't allow this direction"));
        }
        let inside = offset
            .checked_add(length)
            .is_some_and(|end| end <= grant.length());
        if length == 0 || !inside {
            return Err(Error::invalid("the range is outside the grant's"));
        }
        self.locate(grant, offset, length)
    }

    /// Decides what a grant is worth to `peer`, whose key that is: all of its range, and for how many nanoseconds. Fails as
    /// [`Authority::check`] does.
    pub fn appraise(&self, grant: &Grant, peer: EngineId, key: &GrantKey) -> Result<(Permitted, u64)> {
        self.check_holds(grant, peer, key)?;
        let permitted = self.locate(grant, 0, grant.length())?;
        Ok((permitted, grant.expiry().saturating_sub(self.now())))
    }

    /// Whether a grant is genuine, the peer's, and in force.
    fn check_holds(&self, grant: &Grant, peer: EngineId, key: &GrantKey) -> Result<()> {
        if grant.server() != self.identity.id() {
            return Err(denied(
                "the grant is another engine's, or of an engine that has gone",
            ));
        }
        if grant.peer() != peer || !key.made(grant) {
            return Err(denied("the grant is not genuine, or not this peer's"));
        }
        if grant.expiry() <= self.now() {
            return Err(denied("the grant has expired"));
        }
        if self.revoked.read().contains_key(&grant.serial()) {
            return Err(denied("the grant was revoked"));
        }
        Ok(())
    }

    /// Where a range of a grant lies. Fails with `Fenced` when its memory was released.
    fn locate(&self, grant: &Grant, offset: u64, length: u64) -> Result<Permitted> {
        let publication = self.publication(grant.publication())?;
        if publication.epoch != grant.epoch() {
            return Err(released());
        }
        // each sum was checked when the publication and the grant were made; checked again all the same
        let offset_in_region = publication
            .offset
            .checked_add(grant.offset())
            .and_then(|sum| sum.checked_add(offset))
            .filter(|sum| publication.region.contains(*sum, length))
            .ok_or_else(|| Error::invalid("the range is outside the region"))?;
        Ok(Permitted {
            publication,
            offset_in_region,
            length,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grant::Rights;
    use std::time::Duration;

    const PEER: EngineId = EngineId::from_bytes([5; 16]);

    fn authority() -> (Authority, Arc<Table>) {
        let identity = Arc::new(Identity::new(None, Duration::from_secs(1)).unwrap());
        let table = Arc::new(Table::default());
        (Authority::new(identity, table.clone(), Runtime::system()), table)
    }

    fn request(publication: &PublicationState, offset: u64, length: u64) -> GrantRequest {
        GrantRequest {
            peer: PEER,
            publication: publication.id,
            offset,
            length,
            rights: Rights::Read,
            expires_in: Duration::from_mins(10),
        }
    }

    #[test]
    fn only_what_was_granted_is_permitted() {
        let (authority, table) = authority();
        let region = table.allocate(8192).unwrap();
        let publication = table.publish(region.id(), 4096, 4096).unwrap();
        let grant = authority.issue(request(&publication, 100, 200)).unwrap();
        let key = authority.key(PEER);
        let check = |writes, offset, length| authority.check(&grant, PEER, &key, writes, offset, length);
        let permitted = check(false, 50, 150).unwrap();
        assert_eq!((permitted.offset_in_region, permitted.length), (4246, 150));
        assert_eq!(permitted.enter().unwrap().address(), region.base() + 4246);
        for (offset, length) in [
            (0, 201),
            (200, 1),
            (0, 0),
            (u64::MAX, 1),
            (1, u64::MAX),
            (u64::MAX, u64::MAX),
        ] {
            assert_eq!(
                check(false, offset, length).unwrap_err().kind(),
                ErrorKind::InvalidInput
            );
        }
        assert_eq!(check(true, 0, 1).unwrap_err().kind(), ErrorKind::PermissionDenied);
    }

    #[test]
    fn grants_of_others_expired_and_revoked_ones_are_denied() {
        let (authority, table) = authority();
        let region = table.allocate(8192).unwrap();
        let publication = table.publish(region.id(), 0, 8192).unwrap();
        let grant = authority.issue(request(&publication, 0, 8192)).unwrap();
        let denied = |grant: &Grant, peer: EngineId| {
            let key = authority.key(peer);
            authority
                .check(grant, peer, &key, false, 0, 1)
                .unwrap_err()
                .kind()
        };
        assert_eq!(
            denied(&grant, EngineId::from_bytes([6; 16])),
            ErrorKind::PermissionDenied
        );
        let (stranger, _) = self::authority();
        let elsewhere = stranger.check(&grant, PEER, &stranger.key(PEER), false, 0, 1);
        assert_eq!(elsewhere.unwrap_err().kind(), ErrorKind::PermissionDenied);
        let expired = GrantRequest {
            expires_in: Duration::ZERO,
            ..request(&publication, 0, 1)
        };
        assert_eq!(
            denied(&authority.issue(expired).unwrap(), PEER),
            ErrorKind::PermissionDenied
        );
        let forever = GrantRequest {
            expires_in: Duration::MAX,
            ..request(&publication, 0, 1)
        };
        let forever = authority.issue(forever).unwrap();
        assert!(
            authority
                .check(&forever, PEER, &authority.key(PEER), false, 0, 1)
                .is_ok()
        );
        authority.revoke(&forever);
        assert_eq!(denied(&forever, PEER), ErrorKind::PermissionDenied);
        assert!(
            authority
                .check(&grant, PEER, &authority.key(PEER), false, 0, 1)
                .is_ok()
        );
    }

    #[test]
    fn what_was_released_is_fenced() {
        let (authority, table) = authority();
        let region = table.allocate(8192).unwrap();
        let publication = table.publish(region.id(), 0, 8192).unwrap();
        let grant = authority.issue(request(&publication, 0, 8192)).unwrap();
        let key = authority.key(PEER);
        let permitted = authority.check(&grant, PEER, &key, false, 0, 1).unwrap();
        publication.usage.close();
        assert_eq!(permitted.enter().unwrap_err().kind(), ErrorKind::Fenced);
        let check = || {
            authority
                .check(&grant, PEER, &key, false, 0, 1)
                .unwrap_err()
                .kind()
        };
        assert_eq!(check(), ErrorKind::Fenced);
        table.remove_publication(publication.id);
        assert_eq!(check(), ErrorKind::Fenced);
        assert_eq!(
            authority.issue(request(&publication, 0, 1)).unwrap_err().kind(),
            ErrorKind::Fenced
        );
        let again = table.publish(region.id(), 0, 8192).unwrap();
        assert!(again.epoch > publication.epoch);
        assert_eq!(check(), ErrorKind::Fenced);
    }

    #[test]
    fn ranges_outside_the_publication_are_not_granted() {
        let (authority, table) = authority();
        let region = table.allocate(8192).unwrap();
        let publication = table.publish(region.id(), 4096, 100).unwrap();
        for (offset, length) in [(0, 0), (0, 101), (100, 1), (u64::MAX, 2), (2, u64::MAX)] {
            let error = authority
                .issue(request(&publication, offset, length))
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
        }
    }
}
