//! Links whose other end says what no link says.

use std::sync::Arc;

use kvstored_core::ErrorKind;
use kvstored_verbs::{Channel, Direction, LinkAddress, MESSAGE_BYTES, RequestLink, Work};

use crate::pairs;
use crate::rig::{GOOD, MIB, Rig, Served, Store, part, patient, run, wait_for, whole};

/// A link, and a queue pair connected to it that can say anything.
fn raw_peer(rig: &Rig) -> (Arc<RequestLink>, Channel<u32>) {
    raw_peer_with(rig, 192)
}

fn raw_peer_with(rig: &Rig, receives: u16) -> (Arc<RequestLink>, Channel<u32>) {
    let unconnected = rig.unconnected(&patient());
    let address = unconnected.address().encode();
    let number = |at: usize| u32::from_le_bytes(address[at..at + 4].try_into().unwrap());
    let mut raw: Channel<u32> = Channel::new(rig.nic.domain(), rig.nic.number(), 200, 200).unwrap();
    let room = rig.buffer(200 * MESSAGE_BYTES as u64);
    for place in 0..200 {
        let slice = part(
            &room,
            u64::from(place) * MESSAGE_BYTES as u64,
            MESSAGE_BYTES as u64,
        );
        raw.post_receive(slice, place).unwrap();
    }
    raw.connect(&pairs::route(rig, number(8), 5, number(12))).unwrap();
    let mut own = address;
    own[8..12].copy_from_slice(&raw.number().to_le_bytes());
    own[12..16].copy_from_slice(&5_u32.to_le_bytes());
    own[34..36].copy_from_slice(&receives.to_le_bytes());
    let service = Arc::new(Served(Store::new(rig, MIB)));
    let link = unconnected
        .connect(&LinkAddress::decode(&own).unwrap(), service, &rig.driver)
        .unwrap();
    (link, raw)
}

/// A request for 4 KiB, as it goes over the wire.
fn request(id: u64) -> Vec<u8> {
    let mut message = vec![0; 64];
    message[0] = 1;
    message[1] = 1;
    message[4] = GOOD.len() as u8;
    message[6] = 2;
    message[8..16].copy_from_slice(&id.to_le_bytes());
    message[24..32].copy_from_slice(&4096_u64.to_le_bytes());
    message[32..40].copy_from_slice(&0x1000_u64.to_le_bytes());
    message.extend_from_slice(GOOD);
    message
}

fn say(rig: &Rig, raw: &mut Channel<u32>, message: &[u8]) {
    let buffer = rig.buffer(message.len() as u64);
    buffer.write(0, message).unwrap();
    let from = part(&buffer, 0, message.len() as u64);
    raw.post(Work::Send { from }, 1000).unwrap();
}

pub fn malformed(rig: &Rig) {
    let store = Store::new(rig, 4096);
    let [bystander, _other] = rig.link_to(&store);
    let local = rig.buffer(4096);
    let mut wrong: Vec<Vec<u8>> = vec![
        vec![0],
        vec![0; 64],
        vec![0xff; MESSAGE_BYTES],
        request(1)[..64].to_vec(),
    ];
    for (at, value) in [(0, 2), (1, 9), (1, 2), (6, 3), (7, 1), (44, 1), (4, 200), (3, 1)] {
        let mut message = request(1);
        message[at] = value;
        wrong.push(message);
    }
    // an answer that nobody asked for, and a message that doesn't fit
    let mut answer = vec![0; 64];
    answer[..2].copy_from_slice(&[1, 2]);
    wrong.push(answer);
    wrong.push(vec![1; MESSAGE_BYTES + 1]);
    for message in wrong {
        let (link, mut raw) = raw_peer(rig);
        say(rig, &mut raw, &message);
        wait_for("the link to end", || !link.is_alive());
        let error = link.error().unwrap().kind();
        assert!(
            matches!(
                error,
                ErrorKind::Corrupt | ErrorKind::Internal | ErrorKind::Unavailable
            ),
            "{error}"
        );
        run(rig, &bystander, Direction::Write, whole(&local), GOOD, 0).unwrap();
    }
}

pub fn too_many(rig: &Rig) {
    // a request whose key is worthless ends the link as soon as the bytes move
    let (link, mut raw) = raw_peer(rig);
    say(rig, &mut raw, &request(1));
    wait_for("the link to end", || !link.is_alive());
    // and so do more requests than the window, when the peer takes no answers
    let (link, mut raw) = raw_peer_with(rig, 8);
    let mut refused = request(1);
    refused[64..].copy_from_slice(b"nope");
    for id in 0..150 {
        refused[8] = id;
        say(rig, &mut raw, &refused);
    }
    wait_for("the link to end", || !link.is_alive());
}
