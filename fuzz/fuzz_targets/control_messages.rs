//! What client and daemon send each other. Whatever decodes must survive a round trip, and encode the same again.
#![no_main]

use kvstored_client::wire::{
    Answer, HEADER_BYTES, Header, MAX_BODY_BYTES, Request, answer_frame, request_frame,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Some(header) = bytes.first_chunk::<HEADER_BYTES>() {
        header_round_trip(header);
    }
    if let [kind, body @ ..] = bytes {
        request_round_trip(*kind, body);
        answer_round_trip(*kind, body);
        // answers have the upper half of the kinds, and only a few of those are in use
        answer_round_trip(128 + kind % 16, body);
        request_round_trip(kind % 32, body);
    }
});

fn header_round_trip(bytes: &[u8; HEADER_BYTES]) {
    let Ok(header) = Header::decode(bytes) else { return };
    assert!(header.body_bytes <= MAX_BODY_BYTES);
    assert_eq!(header.encode(), *bytes);
}

fn request_round_trip(kind: u8, body: &[u8]) {
    let Ok(request) = Request::decode(kind, body) else {
        return;
    };
    let frame = request_frame(7, &request).expect("a decoded request is within the bounds");
    let (header, again) = split(&frame);
    assert_eq!(
        (header.kind, header.id, header.body_bytes),
        (kind, 7, again.len())
    );
    assert_eq!(
        Request::decode(kind, again).expect("an encoded request decodes"),
        request
    );
}

fn answer_round_trip(kind: u8, body: &[u8]) {
    let Ok(answer) = Answer::decode(kind, body) else {
        return;
    };
    let frame = answer_frame(7, &answer).expect("a decoded answer is within the bounds");
    let (header, first) = split(&frame);
    assert_eq!(
        (header.kind, header.id, header.body_bytes),
        (kind, 7, first.len())
    );
    // long messages are cut when written, so the first round may differ from what came in, but no later one
    let answer = Answer::decode(kind, first).expect("an encoded answer decodes");
    let frame = answer_frame(7, &answer).expect("a decoded answer is within the bounds");
    let (_, second) = split(&frame);
    assert_eq!(first, second);
    assert_eq!(
        Answer::decode(kind, second).expect("an encoded answer decodes"),
        answer
    );
}

fn split(frame: &[u8]) -> (Header, &[u8]) {
    let (header, body) = frame
        .split_first_chunk::<HEADER_BYTES>()
        .expect("a frame has a header");
    (Header::decode(header).expect("our own header is right"), body)
}
