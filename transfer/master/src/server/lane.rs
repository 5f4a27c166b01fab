//! The fast lane's side of the server: see [`crate::wire::lane`].

use std::io;
use std::sync::Arc;

use kvstored_core::Error;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};

use super::auth::Gate;
use super::core::Refusal;
use super::listen::GuardedStream;
use super::service::Service;
use crate::wire::lane::{ANSWERED, ELSEWHERE, FAILED, HEAD_BYTES, MAGIC, MAX_TOKEN_BYTES, Quick};
use crate::wire::lane::{append, read_head};
use crate::wire::{failure, proto};

/// What tells its connections from all others'.
pub(super) const FIRST_BYTE: u8 = MAGIC[0];
/// Room that a connection keeps between questions.
const KEPT_BYTES: usize = 64 << 10;
/// Bytes that are read ahead; most questions come with one look at the socket.
const AHEAD_BYTES: usize = 8 << 10;

/// Serves one connection until it ends.
pub(super) async fn serve(stream: GuardedStream, gate: Gate, service: Arc<Service>) {
    let visitor = stream.visitor();
    let mut stream = BufReader::with_capacity(AHEAD_BYTES, stream);
    match is_admitted(&mut stream, &gate).await {
        Ok(true) => visitor.is_known(),
        Ok(false) => {
            let mut refusal = Vec::new();
            let said = append(&mut refusal, ELSEWHERE, &proto::StatusRequest {});
            if said.is_ok() {
                // it may be gone already
                let _ = stream.get_mut().write_all(&refusal).await;
            }
            return;
        }
        Err(_) => return,
    }
    let (mut question, mut answer) = (Vec::new(), Vec::new());
    // an end of the connection, whichever, is the client's to notice
    while let Ok(verb) = read(&mut stream, &mut question).await {
        answer.clear();
        let written = respond(&service, verb, &question, &mut answer).await;
        if written.is_err() || stream.get_mut().write_all(&answer).await.is_err() {
            return;
        }
        question.shrink_to(KEPT_BYTES);
        answer.shrink_to(KEPT_BYTES);
    }
}

async fn is_admitted(stream: &mut BufReader<GuardedStream>, gate: &Gate) -> io::Result<bool> {
    let mut magic = [0; MAGIC.len()];
    stream.read_exact(&mut magic).await?;
    let length = usize::from(stream.read_u16_le().await?);
    if magic != MAGIC || length > MAX_TOKEN_BYTES {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut token = vec![0; length];
    stream.read_exact(&mut token).await?;
    Ok(gate.admits_token((length > 0).then_some(token.as_slice())))
}

/// Reads a question; returns its verb.
async fn read(stream: &mut BufReader<GuardedStream>, message: &mut Vec<u8>) -> io::Result<u8> {
    let mut head = [0; HEAD_BYTES];
    stream.read_exact(&mut head).await?;
    let (verb, length) = read_head(head).map_err(|_| io::ErrorKind::InvalidData)?;
    message.clear();
    // grows with what comes, not with what was promised
    let read = stream.take(length as u64).read_to_end(message).await?;
    if read < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(verb)
}

async fn respond(service: &Service, verb: u8, message: &[u8], into: &mut Vec<u8>) -> Result<(), Error> {
    match verb {
        proto::PutStartRequest::VERB => {
            let outcome = match decode::<proto::PutStartRequest>(message) {
                Ok(request) => service.start_puts(request).await,
                Err(refusal) => Err(refusal),
            };
            write(into, outcome)
        }
        proto::PutEndRequest::VERB => {
            let outcome = match decode(message) {
                Ok(request) => service.end_puts(&request).await,
                Err(refusal) => Err(refusal),
            };
            write(into, outcome)
        }
        proto::GetRequest::VERB => {
            let outcome = match decode(message) {
                Ok(request) => service.locate(&request).await,
                Err(refusal) => Err(refusal),
            };
            write(into, outcome)
        }
        proto::ExistRequest::VERB => {
            let outcome = match decode(message) {
                Ok(request) => service.look(&request).await,
                Err(refusal) => Err(refusal),
            };
            write(into, outcome)
        }
        _ => append(into, ELSEWHERE, &proto::StatusRequest {}),
    }
}

fn decode<M: Message + Default>(message: &[u8]) -> Result<M, Refusal> {
    M::decode(message).map_err(|error| Refusal::Failed(Error::invalid(format!("no such message: {error}"))))
}

fn write(into: &mut Vec<u8>, outcome: Result<impl Message, Refusal>) -> Result<(), Error> {
    match outcome {
        Ok(answer) => append(into, ANSWERED, &answer),
        Err(Refusal::Failed(error)) => append(into, FAILED, &failure(&error)),
        Err(Refusal::NotLeader(_)) => append(into, ELSEWHERE, &proto::StatusRequest {}),
    }
}
