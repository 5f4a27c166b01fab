//! What transfer engines send each other: whatever decodes must encode the same, and claim no more than its bounds.
#![no_main]

use kvstored_transfer::wire::{
    Attach, HANDSHAKE_BYTES, HEADER_BYTES, HandshakeFrame, Header, Introduction, MAX_BODY_BYTES,
    MAX_PAYLOAD_BYTES, MOST_MOVES, Moves, Offer, Question, Range, TRAILER_BYTES, Trailer, Wanted, Welcome,
    Worths,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Some(header) = bytes.first_chunk::<HEADER_BYTES>() {
        header_round_trip(header);
        // with a sum that is right, which no fuzzer guesses
        let mut summed = *header;
        let mut sum = kvstored_core::checksum::Checksum::new();
        sum.update(&summed[..HEADER_BYTES - 8]);
        summed[HEADER_BYTES - 8..].copy_from_slice(&sum.value().to_le_bytes());
        header_round_trip(&summed);
    }
    if let Some(trailer) = bytes.first_chunk::<TRAILER_BYTES>()
        && let Ok(decoded) = Trailer::decode(trailer)
    {
        assert_eq!(decoded.encode(), *trailer);
    }
    if let Some(frame) = bytes.first_chunk::<HANDSHAKE_BYTES>()
        && let Ok(decoded) = HandshakeFrame::decode(frame)
    {
        assert_eq!(decoded.encode(), *frame);
    }
    if let Ok(wanted) = Wanted::decode(bytes) {
        assert_eq!(wanted.encode(), *bytes);
    }
    if let Ok(range) = Range::decode(bytes) {
        assert_eq!(range.encode(), *bytes);
    }
    if let Ok(attach) = Attach::decode(bytes) {
        assert_eq!(attach.encode(), *bytes);
    }
    if let Ok(moves) = Moves::decode(bytes) {
        assert!((1..=MOST_MOVES).contains(&moves.entries.len()));
        assert_eq!(moves.encode(), *bytes);
    }
    sharing_round_trips(bytes);
});

fn header_round_trip(bytes: &[u8; HEADER_BYTES]) {
    let Ok(header) = Header::decode(bytes) else { return };
    assert!(header.payload_bytes() as u64 <= MAX_PAYLOAD_BYTES);
    assert!(header.body_bytes <= MAX_BODY_BYTES);
    assert_eq!(header.encode(), *bytes);
}

/// What processes of one host say over their Unix socket.
fn sharing_round_trips(bytes: &[u8]) {
    if let Ok(offer) = Offer::decode(bytes) {
        assert_eq!(offer.encode(), *bytes);
    }
    if let Ok(introduction) = Introduction::decode(bytes) {
        assert_eq!(introduction.encode(), *bytes);
    }
    if let Ok(welcome) = Welcome::decode(bytes) {
        assert_eq!(welcome.encode(), *bytes);
    }
    if let Ok(question) = Question::decode(bytes) {
        assert_eq!(question.encode(), *bytes);
    }
    if let Ok(worths) = Worths::decode(bytes) {
        assert_eq!(worths.encode(), *bytes);
    }
}
