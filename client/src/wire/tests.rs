mod strategies;

use kvstored_core::block::BlockHash;
use kvstored_core::error::ErrorKind;
use kvstored_core::layout::Layout;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use strategies::{answer, request};

fn split(frame: &[u8]) -> (Header, &[u8]) {
    (
        Header::decode(frame.first_chunk().unwrap()).unwrap(),
        &frame[HEADER_BYTES..],
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn requests_round_trip(id in any::<u32>(), request in request()) {
        let frame = request_frame(id, &request).unwrap();
        let (header, body) = split(&frame);
        prop_assert_eq!((header.id, header.body_bytes), (id, body.len()));
        prop_assert_eq!(Request::decode(header.kind, body).unwrap(), request);
    }

    #[test]
    fn answers_round_trip(id in any::<u32>(), answer in answer()) {
        let frame = answer_frame(id, &answer).unwrap();
        let (header, body) = split(&frame);
        prop_assert_eq!(Answer::decode(header.kind, body).unwrap(), answer);
    }

    #[test]
    fn a_message_cut_short_or_too_long_is_an_error(request in request(), cut in any::<prop::sample::Index>()) {
        let frame = request_frame(1, &request).unwrap();
        let (header, body) = split(&frame);
        if !body.is_empty() {
            prop_assert!(Request::decode(header.kind, &body[..cut.index(body.len())]).is_err());
        }
        let mut longer = body.to_vec();
        longer.push(0);
        prop_assert!(Request::decode(header.kind, &longer).is_err());
    }

    #[test]
    fn rubbish_never_panics_and_what_decodes_survives(kind in any::<u8>(), body in vec(any::<u8>(), 0..300)) {
        if let Ok(request) = Request::decode(kind, &body) {
            let frame = request_frame(1, &request).unwrap();
            prop_assert_eq!(Request::decode(kind, &frame[HEADER_BYTES..]).unwrap(), request);
        }
        if let Ok(answer) = Answer::decode(kind, &body) {
            let frame = answer_frame(1, &answer).unwrap();
            prop_assert_eq!(Answer::decode(kind, &frame[HEADER_BYTES..]).unwrap(), answer);
        }
    }

    #[test]
    fn flipped_bytes_never_panic(request in request(), at in any::<prop::sample::Index>(), flip in 1u8..) {
        let frame = request_frame(1, &request).unwrap();
        let (header, body) = split(&frame);
        let mut body = body.to_vec();
        if !body.is_empty() {
            let at = at.index(body.len());
            body[at] ^= flip;
        }
        let _ = Request::decode(header.kind, &body);
    }

    #[test]
    fn frames_come_out_of_a_stream_whatever_the_pieces(
        requests in vec(request(), 1..6),
        pieces in vec(1usize..2000, 1..30),
    ) {
        let mut stream = Vec::new();
        for (id, request) in requests.iter().enumerate() {
            stream.extend(request_frame(id as u32, request).unwrap());
        }
        let mut buffer = FrameBuffer::default();
        let (mut decoded, mut rest, mut pieces) = (Vec::new(), &stream[..], pieces.iter().cycle());
        while !rest.is_empty() {
            let piece = (*pieces.next().unwrap()).min(rest.len());
            buffer.space()[..piece].copy_from_slice(&rest[..piece]);
            buffer.filled(piece);
            rest = &rest[piece..];
            while let Some((header, body)) = buffer.next_frame().unwrap() {
                prop_assert_eq!(header.id as usize, decoded.len());
                decoded.push(Request::decode(header.kind, body).unwrap());
            }
        }
        prop_assert!(!buffer.is_partial());
        prop_assert_eq!(decoded, requests);
    }
}

fn lookup_body(count: u32, length: u8, bytes: usize) -> Vec<u8> {
    let mut body = 0u32.to_le_bytes().to_vec();
    body.extend(count.to_le_bytes());
    body.push(length);
    body.resize(body.len() + bytes, 7);
    body
}

#[test]
fn a_wrong_hash_length_is_named() {
    for length in [1u8, 15, 33, 255] {
        let error = Request::decode(4, &lookup_body(2, length, 2 * usize::from(length))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(
            error.to_string().contains(&format!("has {length} bytes")),
            "{error}"
        );
    }
}

#[test]
fn counts_are_checked_before_anything_is_allocated() {
    for body in [
        lookup_body(u32::MAX, 16, 64),
        lookup_body(65_537, 16, 64),
        lookup_body(60_000, 0, 64),
    ] {
        assert_eq!(
            Request::decode(4, &body).unwrap_err().kind(),
            ErrorKind::InvalidInput
        );
    }
    let many = vec![BlockHash::new(&[1; 32]).unwrap(); MAX_BLOCKS + 1];
    let error = request_frame(
        1,
        &Request::Lookup {
            namespace: 0,
            hashes: many.into(),
        },
    )
    .unwrap_err();
    assert!(error.to_string().contains("65537"), "{error}");
}

#[test]
fn the_largest_accepted_messages_fit_a_frame() {
    let hashes = vec![BlockHash::new(&[1; 32]).unwrap(); MAX_BLOCKS];
    request_frame(
        1,
        &Request::Acquire {
            namespace: 0,
            hashes: hashes.into(),
        },
    )
    .unwrap();
    let failure = Failure {
        kind: ErrorKind::Busy,
        message: "é".repeat(4000),
    };
    answer_frame(1, &Answer::Acquired(vec![Err(failure.clone()); MAX_BLOCKS])).unwrap();
    answer_frame(1, &Answer::Reserved(vec![Granted::Refused(failure); MAX_BLOCKS])).unwrap();
    let layout = Layout::uniform(Layout::MAX_SHARDS, Layout::MAX_TENSORS_PER_SHARD, 1).unwrap();
    request_frame(
        1,
        &Request::OpenNamespace {
            identity: Box::default(),
            layout,
        },
    )
    .unwrap();
}

#[test]
fn wrong_headers_are_told_apart() {
    let mut header = Header {
        kind: 2,
        id: 1,
        body_bytes: 0,
    }
    .encode();
    header[2] = 9;
    let error = Header::decode(&header).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("version 9"), "{error}");
    header[0] = 0;
    assert_eq!(
        Header::decode(&header).unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
    let header = Header {
        kind: 2,
        id: 1,
        body_bytes: MAX_BODY_BYTES + 1,
    }
    .encode();
    assert_eq!(
        Header::decode(&header).unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
    assert_eq!(
        Request::decode(99, &[]).unwrap_err().kind(),
        ErrorKind::Unsupported
    );
}
