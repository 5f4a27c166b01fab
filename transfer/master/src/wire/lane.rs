//! The fast lane: the calls that puts and gets wait for, as plain frames over a loopback connection to the master's own
//! port. The messages are those of gRPC; what they are spared is HTTP/2. Byte-exact:
//!
//! - A connection begins with [`MAGIC`], the token's length (2 bytes, little-endian) and the token; nothing answers that.
//! - A question is a length (4 bytes, little-endian, of what follows), a [`Quick::VERB`] and the message.
//! - Its answer, the next thing that comes back, is a length, an outcome and a message: the call's answer behind
//!   [`ANSWERED`], a `Failure` behind [`FAILED`], and nothing behind [`ELSEWHERE`], which says to ask by gRPC: another
//!   master leads, the token is wrong, or the verb is unknown.
//!
//! One question at a time. All four calls may be asked twice without harm.

use kvstored_core::{Error, Result};
use prost::Message;

use super::{MAX_MESSAGE_BYTES, error_of, proto};

/// How a connection begins; no HTTP/2 connection and no TLS one does.
pub(crate) const MAGIC: [u8; 4] = *b"KVL1";
/// The longest token.
pub(crate) const MAX_TOKEN_BYTES: usize = 4096;
/// Bytes before a message: the length, and the verb or the outcome.
pub(crate) const HEAD_BYTES: usize = 5;

/// Outcome: the call's answer follows.
pub(crate) const ANSWERED: u8 = 0;
/// Outcome: the call failed as a whole; a `Failure` follows.
pub(crate) const FAILED: u8 = 1;
/// Outcome: ask by gRPC.
pub(crate) const ELSEWHERE: u8 = 2;

/// A question that the fast lane takes.
pub(crate) trait Quick: Message {
    /// Its number.
    const VERB: u8;
    /// What is answered.
    type Answer: Message + Default;
}

impl Quick for proto::PutStartRequest {
    const VERB: u8 = 1;
    type Answer = proto::PutStartResponse;
}

impl Quick for proto::PutEndRequest {
    const VERB: u8 = 2;
    type Answer = proto::PutEndResponse;
}

impl Quick for proto::GetRequest {
    const VERB: u8 = 3;
    type Answer = proto::GetResponse;
}

impl Quick for proto::ExistRequest {
    const VERB: u8 = 4;
    type Answer = proto::ExistResponse;
}

/// The first bytes of a connection. Fails with `InvalidInput` for too long a token.
pub(crate) fn hello(token: Option<&[u8]>) -> Result<Vec<u8>> {
    let token = token.unwrap_or_default();
    if token.len() > MAX_TOKEN_BYTES {
        return Err(Error::invalid(format!("a token of {} bytes", token.len())));
    }
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&(token.len() as u16).to_le_bytes());
    bytes.extend_from_slice(token);
    Ok(bytes)
}

/// Appends a frame. Fails with `TooLarge` past what the other side takes.
pub(crate) fn append(bytes: &mut Vec<u8>, code: u8, message: &impl Message) -> Result<()> {
    let length = message.encoded_len();
    if length > MAX_MESSAGE_BYTES {
        return Err(Error::new(
            kvstored_core::ErrorKind::TooLarge,
            format!("a message of {length} bytes"),
        ));
    }
    bytes.reserve(HEAD_BYTES + length);
    bytes.extend_from_slice(&(length as u32 + 1).to_le_bytes());
    bytes.push(code);
    message
        .encode(bytes)
        .map_err(|error| Error::internal(format!("a message that can't be written: {error}")))
}

/// A frame's verb or outcome, and its message's bytes. Fails with `Corrupt` for a length that can't be.
pub(crate) fn read_head(head: [u8; HEAD_BYTES]) -> Result<(u8, usize)> {
    let [a, b, c, d, code] = head;
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    if length == 0 || length > MAX_MESSAGE_BYTES + 1 {
        return Err(Error::new(
            kvstored_core::ErrorKind::Corrupt,
            format!("a frame of {length} bytes"),
        ));
    }
    Ok((code, length - 1))
}

/// What an answer says; `None` where gRPC is to be asked. Fails with `Corrupt` for bytes that are no such message.
pub(crate) fn read_answer<M: Quick>(outcome: u8, message: &[u8]) -> Result<Option<Result<M::Answer>>> {
    let corrupt = |error| {
        Error::new(
            kvstored_core::ErrorKind::Corrupt,
            format!("no such answer: {error}"),
        )
    };
    match outcome {
        ANSWERED => Ok(Some(Ok(M::Answer::decode(message).map_err(corrupt)?))),
        FAILED => {
            let failure = proto::Failure::decode(message).map_err(corrupt)?;
            Ok(Some(Err(error_of(&failure))))
        }
        _ => Ok(None),
    }
}

/// Reads bytes as a client reads answers, as each call's; whatever is read must be written the same. For fuzz targets.
#[cfg(fuzzing)]
pub fn check_answers(bytes: &[u8]) {
    check_answer::<proto::PutStartRequest>(bytes);
    check_answer::<proto::PutEndRequest>(bytes);
    check_answer::<proto::GetRequest>(bytes);
    check_answer::<proto::ExistRequest>(bytes);
}

#[cfg(fuzzing)]
fn check_answer<M: Quick>(bytes: &[u8])
where
    M::Answer: PartialEq,
{
    let Some((head, message)) = bytes.split_first_chunk() else {
        return;
    };
    let Ok((outcome, length)) = read_head(*head) else {
        return;
    };
    assert!(length <= MAX_MESSAGE_BYTES);
    let Some(message) = message.get(..length) else {
        return;
    };
    if let Ok(Some(Ok(answer))) = read_answer::<M>(outcome, message) {
        let mut again = Vec::new();
        assert!(append(&mut again, ANSWERED, &answer).is_ok());
        assert!(M::Answer::decode(&again[HEAD_BYTES..]).is_ok_and(|same| same == answer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_byte_exact() {
        let mut bytes = hello(Some(b"tok")).unwrap();
        let asked = proto::ExistRequest {
            keys: vec![prost::bytes::Bytes::from_static(b"k")],
            lease: true,
        };
        append(&mut bytes, proto::ExistRequest::VERB, &asked).unwrap();
        assert_eq!(bytes, b"KVL1\x03\x00tok\x06\x00\x00\x00\x04\x0a\x01k\x10\x01");
        assert_eq!(read_head([6, 0, 0, 0, 4]).unwrap(), (4, 5));
    }

    #[test]
    fn impossible_lengths_are_refused() {
        for length in [0, MAX_MESSAGE_BYTES as u32 + 2, u32::MAX] {
            let [a, b, c, d] = length.to_le_bytes();
            assert!(read_head([a, b, c, d, 1]).is_err(), "{length}");
        }
        assert!(hello(Some(&[b'x'; MAX_TOKEN_BYTES + 1])).is_err());
    }
}
