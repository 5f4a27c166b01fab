//! Nothing stays behind.

use super::raw::{RawPeer, dial};
use super::rig::{Rig, asking, descriptors, eventually, grant, resident, soon, start};
use crate::{Rights, TransferKind};

#[test]
fn descriptors_and_memory_are_flat() {
    let rig = Rig::new(1 << 20);
    let address = rig.server.address().unwrap();
    let round = || {
        let client = start(asking());
        let peer = client.open_peer(&address.to_string(), soon()).unwrap();
        let local = client.allocate(1 << 20).unwrap();
        let publication = rig.server.publish(rig.remote.id(), 0, 1 << 20).unwrap();
        let granted = grant(&rig.server, &client, &publication, Rights::ReadWrite);
        for kind in [TransferKind::Read, TransferKind::Write] {
            let entry = crate::TransferEntry {
                local: local.id(),
                local_offset: 0,
                grant: granted,
                remote_offset: 0,
                length: 1 << 20,
            };
            let transfer = client.submit(&peer, kind, vec![entry.clone()], soon()).unwrap();
            transfer.wait(soon()).unwrap();
            client.submit(&peer, kind, vec![entry], soon()).unwrap().cancel();
        }
        rig.server.revoke(&granted);
        rig.server.release(publication.id(), soon()).unwrap();
        client.unregister(local.id(), soon()).unwrap();
        drop(dial(address));
        let mut raw = RawPeer::connect(&rig.server);
        raw.send(&[0xFF; 300]);
        assert!(raw.is_closed());
        client.shutdown();
    };
    (0..5).for_each(|_| round());
    eventually("connections of the first rounds are gone", || {
        rig.server.counters().len() <= 2
    });
    let (open, memory) = (descriptors(), resident());
    (0..60).for_each(|_| round());
    eventually("no descriptor is left over", || descriptors() <= open);
    let grown = resident().saturating_sub(memory);
    assert!(grown < 8 << 20, "memory grew by {grown} bytes");
    rig.check();
}
