//! What a grant doesn't allow doesn't happen.

use std::time::Duration;

use kvstored_core::ErrorKind;

use super::raw::RawPeer;
use super::rig::{Rig, asking, contents, grant, over, over_each_transport_here, start};
use crate::wire::{Header, Kind, MAX_PAYLOAD_BYTES};

use crate::{GRANT_BYTES, Grant, GrantRequest, Rights, TransferKind, TransportKind};

over_each_transport_here! {
    a_grant_of_another_peer_is_refused,
    expired_and_revoked_grants_are_refused,
    a_direction_that_was_not_granted_is_refused,
}

#[test]
fn an_altered_grant_is_refused_whatever_was_altered() {
    let rig = Rig::new(8192);
    let good = rig.grant.encode();
    let mut raw = RawPeer::connect(&rig.server);
    let mut refused = 0;
    for byte in 0..GRANT_BYTES {
        let mut bytes = good;
        bytes[byte] ^= 0x10;
        let (header, payload) = raw.read(&bytes, 0, 64);
        assert!(header.error.is_some() && payload.is_empty(), "byte {byte}");
        refused += 1;
    }
    // what decodes is refused by the engine's own interface, too
    let mut bytes = good;
    bytes[127] ^= 1;
    assert_eq!(
        rig.refusal(TransferKind::Read, Grant::decode(&bytes).unwrap()),
        ErrorKind::PermissionDenied
    );
    let rows = rig.server.counters();
    assert_eq!(rows.iter().map(|row| row.refused).sum::<u64>(), refused + 1);
    rig.check();
}

fn a_grant_of_another_peer_is_refused(transport: TransportKind) {
    let rig = Rig::over(transport, 8192);
    let other = start(over(transport, asking()));
    let theirs = grant(&rig.server, &other, &rig.publication, Rights::ReadWrite);
    for kind in [TransferKind::Read, TransferKind::Write] {
        assert_eq!(rig.refusal(kind, theirs), ErrorKind::PermissionDenied);
    }
    rig.check();
}

#[test]
fn a_grant_is_worthless_at_another_engine() {
    let (rig, other) = (Rig::new(8192), Rig::new(8192));
    // its own interface refuses before asking …
    assert_eq!(
        rig.refusal(TransferKind::Read, other.grant),
        ErrorKind::PermissionDenied
    );
    // … and the engine does when it's asked all the same
    let mut raw = RawPeer::connect(&rig.server);
    let (header, _) = raw.read(&other.grant.encode(), 0, 64);
    assert_eq!(header.error, Some(ErrorKind::PermissionDenied));
}

fn expired_and_revoked_grants_are_refused(transport: TransportKind) {
    let rig = Rig::over(transport, 8192);
    let request = GrantRequest {
        peer: rig.client.identity(),
        publication: rig.publication.id(),
        offset: 0,
        length: 8192,
        rights: Rights::ReadWrite,
        expires_in: Duration::from_millis(30),
    };
    let short = rig.server.grant(request).unwrap();
    super::rig::pause(Duration::from_millis(40));
    assert_eq!(
        rig.refusal(TransferKind::Read, short),
        ErrorKind::PermissionDenied
    );
    rig.server.revoke(&rig.grant);
    assert_eq!(
        rig.refusal(TransferKind::Write, rig.grant),
        ErrorKind::PermissionDenied
    );
    // another on the same range is its own
    let fresh = grant(&rig.server, &rig.client, &rig.publication, Rights::ReadWrite);
    rig.run(TransferKind::Read, vec![rig.entry_with(fresh, 0, 0, 8192)])
        .unwrap();
}

fn a_direction_that_was_not_granted_is_refused(transport: TransportKind) {
    let rig = Rig::over(transport, 8192);
    rig.remote.write(0, &[5; 8192]).unwrap();
    let reads = grant(&rig.server, &rig.client, &rig.publication, Rights::Read);
    let writes = grant(&rig.server, &rig.client, &rig.publication, Rights::Write);
    assert_eq!(
        rig.refusal(TransferKind::Write, reads),
        ErrorKind::PermissionDenied
    );
    assert_eq!(
        rig.refusal(TransferKind::Read, writes),
        ErrorKind::PermissionDenied
    );
    assert!(contents(&rig.remote, 0, 8192).iter().all(|byte| *byte == 5));
    rig.run(TransferKind::Read, vec![rig.entry_with(reads, 0, 0, 100)])
        .unwrap();
    rig.run(TransferKind::Write, vec![rig.entry_with(writes, 0, 0, 100)])
        .unwrap();
}

#[test]
fn ranges_beyond_the_grant_are_refused_by_the_serving_side() {
    let rig = Rig::new(16_384);
    rig.remote.write(0, &[5; 16_384]).unwrap();
    let narrow = rig
        .server
        .grant(GrantRequest {
            peer: RawPeer::NAME_LATER,
            publication: rig.publication.id(),
            offset: 4096,
            length: 4096,
            rights: Rights::ReadWrite,
            expires_in: Duration::from_mins(10),
        })
        .unwrap();
    assert_eq!(narrow.length(), 4096);
    let mut raw = RawPeer::connect(&rig.server);
    let narrow = raw.granted(&rig.server, &rig.publication, 4096, 4096).encode();
    let beyond = [
        (4096, 1),
        (0, 4097),
        (4095, 2),
        (u64::MAX, 1),
        (u64::MAX - 63, 64),
        (1 << 63, 4096),
        (u64::MAX, 1 << 20),
    ];
    for (offset, length) in beyond {
        let (header, payload) = raw.read(&narrow, offset, length);
        assert_eq!(
            header.error,
            Some(ErrorKind::InvalidInput),
            "read {offset}+{length}"
        );
        assert!(payload.is_empty());
        let header = raw.write(&narrow, offset, &vec![1; length as usize]);
        assert_eq!(
            header.error,
            Some(ErrorKind::InvalidInput),
            "write {offset}+{length}"
        );
    }
    assert!(contents(&rig.remote, 0, 16_384).iter().all(|byte| *byte == 5));
    // lengths that no frame has end the connection
    for length in [0, MAX_PAYLOAD_BYTES + 1, u64::MAX, u64::MAX - 4095] {
        let mut raw = RawPeer::connect(&rig.server);
        let header = Header {
            length,
            ..Header::request(Kind::Read, 1, GRANT_BYTES)
        };
        raw.send(&header.encode());
        raw.send(&narrow);
        assert!(raw.is_closed(), "length {length}");
    }
    let (header, payload) = raw.read(&narrow, 4000, 96);
    assert_eq!((header.error, payload), (None, vec![5; 96]));
}
