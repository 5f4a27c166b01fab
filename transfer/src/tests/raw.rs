//! A peer that says whatever it likes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use kvstored_core::Result;

use super::rig::PATIENCE;
use crate::handshake::{Agreed, Identity, Opener};
use crate::wire::{HANDSHAKE_BYTES, HEADER_BYTES, HandshakeFrame, Header, Kind, TRAILER_BYTES, Trailer};
use crate::{EngineId, Grant, GrantRequest, Publication, Rights, Secret, TransferEngine};

pub struct RawPeer {
    pub stream: TcpStream,
    identity: Arc<Identity>,
    next: u64,
}

pub fn dial(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

pub fn frame(stream: &mut TcpStream) -> std::io::Result<HandshakeFrame> {
    let mut bytes = [0; HANDSHAKE_BYTES];
    stream.read_exact(&mut bytes)?;
    Ok(HandshakeFrame::decode(&bytes).unwrap())
}

/// Goes through the whole handshake.
pub fn shake(stream: &mut TcpStream, identity: &Arc<Identity>) -> Result<Agreed> {
    let gone = |error| kvstored_core::Error::from_io(error, "handshake");
    let (opener, hello) = Opener::new(identity)?;
    stream.write_all(&hello.encode()).map_err(gone)?;
    let (proven, proof) = opener.prove(frame(stream).map_err(gone)?, b"")?;
    stream.write_all(&proof.encode()).map_err(gone)?;
    proven.finish(frame(stream).map_err(gone)?)
}

pub fn identity(token: Option<&str>) -> Arc<Identity> {
    let token = token.map(Secret::new);
    Arc::new(Identity::new(token.as_ref(), Duration::from_mins(10)).unwrap())
}

impl RawPeer {
    /// A name that nobody has.
    pub const NAME_LATER: EngineId = EngineId::from_bytes([1; 16]);

    pub fn connect(server: &TransferEngine) -> Self {
        let identity = identity(None);
        let mut stream = dial(server.address().unwrap());
        let agreed = shake(&mut stream, &identity).unwrap();
        assert_eq!(agreed.peer, server.identity());
        Self {
            stream,
            identity,
            next: 1,
        }
    }

    pub fn granted(
        &self,
        server: &TransferEngine,
        publication: &Publication,
        offset: u64,
        length: u64,
    ) -> Grant {
        server
            .grant(GrantRequest {
                peer: self.identity.id(),
                publication: publication.id(),
                offset,
                length,
                rights: Rights::ReadWrite,
                expires_in: Duration::from_mins(10),
            })
            .unwrap()
    }

    pub fn send(&mut self, bytes: &[u8]) {
        // who is closed already can't be told anything
        let _ = self.stream.write_all(bytes);
    }

    pub fn request(&mut self, kind: Kind, body: usize, offset: u64, length: u64) -> Header {
        self.next += 1;
        Header {
            offset,
            length,
            ..Header::request(kind, self.next, body)
        }
    }

    pub fn read(&mut self, grant: &[u8], offset: u64, length: u64) -> (Header, Vec<u8>) {
        let header = self.request(Kind::Read, grant.len(), offset, length);
        self.send(&header.encode());
        self.send(grant);
        self.answer(&header)
    }

    pub fn write(&mut self, grant: &[u8], offset: u64, payload: &[u8]) -> Header {
        let header = self.request(Kind::Write, grant.len(), offset, payload.len() as u64);
        self.send(&header.encode());
        self.send(grant);
        self.send(payload);
        self.send(
            &Trailer {
                id: header.id,
                error: None,
            }
            .encode(),
        );
        self.answer(&header).0
    }

    /// The body of an answer without a payload.
    pub fn body(&mut self, request: &Header) -> Vec<u8> {
        self.answered(request).1
    }

    pub fn answer(&mut self, request: &Header) -> (Header, Vec<u8>) {
        let (header, _, payload) = self.answered(request);
        (header, payload)
    }

    fn answered(&mut self, request: &Header) -> (Header, Vec<u8>, Vec<u8>) {
        let mut bytes = [0; HEADER_BYTES];
        self.stream.read_exact(&mut bytes).unwrap();
        let header = Header::decode(&bytes).unwrap();
        assert!(header.answer);
        assert_eq!((header.id, header.kind), (request.id, request.kind));
        let mut body = vec![0; header.body_bytes as usize];
        self.stream.read_exact(&mut body).unwrap();
        let mut payload = vec![0; header.payload_bytes()];
        self.stream.read_exact(&mut payload).unwrap();
        if !payload.is_empty() {
            let mut trailer = [0; TRAILER_BYTES];
            self.stream.read_exact(&mut trailer).unwrap();
            assert_eq!(
                Trailer::decode(&trailer).unwrap(),
                Trailer {
                    id: request.id,
                    error: None
                }
            );
        }
        (header, body, payload)
    }

    /// Whether the other side ends the connection, after whatever it still says.
    pub fn is_closed(&mut self) -> bool {
        ends(&mut self.stream)
    }
}

pub fn ends(stream: &mut TcpStream) -> bool {
    let mut waste = vec![0; 4096];
    loop {
        match stream.read(&mut waste) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => {
                let waits = matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                );
                return !waits;
            }
        }
    }
}
