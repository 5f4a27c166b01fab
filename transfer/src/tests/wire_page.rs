//! The tables of `docs/wire.md`, field by field: a change of any byte is a change of the protocol's version.

use kvstored_core::ErrorKind;
use kvstored_core::checksum::checksum;

use super::rig::Rig;
use crate::Rights;
use crate::wire::{
    HandshakeFrame, Header, Hello, Introduction, Kind, Offer, Proof, Question, Range, Trailer, Wanted,
    Welcome, Worth, Worths,
};

/// Takes an encoding apart from its start.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    #[track_caller]
    fn is(&mut self, expected: &[u8]) -> &mut Self {
        let (field, rest) = self.0.split_at(expected.len());
        assert_eq!(field, expected);
        self.0 = rest;
        self
    }

    #[track_caller]
    fn zeros(&mut self, count: usize) -> &mut Self {
        self.is(&vec![0; count])
    }

    #[track_caller]
    fn end(&self) {
        assert_eq!(self.0, []);
    }
}

fn u32(value: u32) -> [u8; 4] {
    value.to_le_bytes()
}

fn u64(value: u64) -> [u8; 8] {
    value.to_le_bytes()
}

#[test]
fn headers_and_trailers() {
    let kinds = [
        Kind::Read,
        Kind::Write,
        Kind::Notify,
        Kind::Ping,
        Kind::Want,
        Kind::First,
        Kind::Share,
        Kind::Ask,
        Kind::Rdma,
        Kind::Attach,
        Kind::Move,
    ];
    for (code, kind) in (1..).zip(kinds) {
        assert_eq!(Header::request(kind, 1, 0).encode()[4..6], [code, 0]);
        let failed = Header::request(kind, 1, 0).answered(Some(ErrorKind::InvalidInput), 0);
        assert_eq!(failed.encode()[4..6], [code + 128, 1]);
    }
    let header = Header {
        offset: 0x0102_0304_0506_0708,
        length: 0x1112_1314,
        ..Header::request(Kind::Read, 0x2122_2324_2526_2728, 128)
    };
    let bytes = header.encode();
    let mut fields = Fields(&bytes);
    fields.is(b"KVTF").is(&[1, 0]).zeros(2).is(&u64(header.id));
    fields.is(&u64(header.offset)).is(&u64(header.length));
    fields.is(&u32(128)).zeros(20).is(&u64(checksum(&bytes[..56])));
    fields.end();
    let trailer = Trailer {
        id: 7,
        error: Some(ErrorKind::Internal),
    };
    Fields(&trailer.encode()).is(&u64(7)).is(&[17]).zeros(7).end();
}

#[test]
fn frames_of_the_handshake() {
    let hello = Hello {
        heartbeat_ms: 0x0102_0304,
        identity: [1; 32],
        exchange: [2; 32],
        nonce: [3; 32],
    };
    let mut signature = [4; 64];
    signature[63] = 5;
    let proof = Proof {
        signature,
        mac: [6; 32],
    };
    for (kind, frame) in [
        (1, HandshakeFrame::OpenerHello(hello)),
        (2, HandshakeFrame::AcceptorHello(hello)),
    ] {
        let bytes = frame.encode();
        let mut fields = Fields(&bytes);
        fields.is(b"KVSTXFER").is(&[kind, 0, 1, 0]).is(&u32(0x0102_0304));
        fields.is(&[1; 32]).is(&[2; 32]).is(&[3; 32]).zeros(16).end();
    }
    for (kind, frame) in [
        (3, HandshakeFrame::OpenerProof(proof)),
        (4, HandshakeFrame::AcceptorProof(proof)),
    ] {
        let bytes = frame.encode();
        let mut fields = Fields(&bytes);
        fields.is(b"KVSTXFER").is(&[kind, 0, 1, 0]).zeros(4);
        fields.is(&signature).is(&[6; 32]).zeros(16).end();
    }
    let refusal = HandshakeFrame::Refusal(ErrorKind::PermissionDenied).encode();
    Fields(&refusal)
        .is(b"KVSTXFER")
        .is(&[5, 15, 1, 0])
        .zeros(116)
        .end();
}

#[test]
fn bodies_and_grants() {
    let wanted = Wanted {
        address: 1,
        length: 2,
        rights: Rights::ReadWrite,
    };
    Fields(&wanted.encode())
        .is(&u64(1))
        .is(&u64(2))
        .is(&[3])
        .zeros(7)
        .end();
    let range = Range {
        address: 1,
        length: 2,
    };
    Fields(&range.encode()).is(&u64(1)).is(&u64(2)).end();
    let rig = Rig::new(4096);
    let bytes = rig.grant.encode();
    let mut fields = Fields(&bytes);
    fields.is(b"KVGR").is(&[1, 3]).zeros(2);
    fields.is(&rig.server.identity().to_bytes());
    fields.is(&rig.client.identity().to_bytes());
    fields.is(&u64(rig.publication.id().value()));
    fields.is(&u64(rig.publication.epoch()));
    fields.is(&u64(0)).is(&u64(4096));
    fields.is(&u64(rig.grant.expiry())).is(&u64(rig.grant.serial()));
    fields.zeros(8);
    assert_eq!(fields.0.len(), 32);
}

#[test]
fn messages_about_sharing() {
    let offer = Offer {
        ticket: [7; 32],
        slots: 9,
        address: "@here".to_owned(),
    };
    let bytes = offer.encode();
    Fields(&bytes)
        .is(&[7; 32])
        .is(&u32(9))
        .zeros(4)
        .is(b"@here")
        .end();
    let introduction = Introduction {
        started: 5,
        ticket: [3; 32],
    };
    let bytes = introduction.encode();
    Fields(&bytes).is(&[1]).zeros(7).is(&u64(5)).is(&[3; 32]).end();
    let welcome = Welcome {
        error: Some(ErrorKind::Busy),
        probe: 1,
        expected: [2; 16],
    };
    let bytes = welcome.encode();
    Fields(&bytes).is(&[5]).zeros(7).is(&u64(1)).is(&[2; 16]).end();
    let rig = Rig::new(4096);
    let question = Question {
        number: 6,
        grants: vec![rig.grant],
    };
    let bytes = question.encode();
    Fields(&bytes)
        .is(&[2, 1, 0, 0])
        .is(&u32(6))
        .is(&rig.grant.encode())
        .end();
    let worth = Worth {
        own: true,
        rights: Rights::Write,
        region: 1,
        region_bytes: 2,
        offset: 3,
        slot: 4,
        epoch: 5,
        lasts: 6,
        address: 7,
    };
    let worths = Worths {
        number: 8,
        worths: vec![Err(ErrorKind::Fenced), Ok(worth)],
    };
    let bytes = worths.encode();
    let mut fields = Fields(&bytes);
    fields.is(&[3, 2, 0, 0]).is(&u32(8));
    fields.is(&[13]).zeros(63);
    fields.is(&[0, 1, 2]).zeros(5);
    fields.is(&u64(1)).is(&u64(2)).is(&u64(3)).is(&u32(4)).zeros(4);
    fields.is(&u64(5)).is(&u64(6)).is(&u64(7)).end();
}
