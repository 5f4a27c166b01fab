//! A client that speaks the protocol by hand, and so can break it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use kvstored_client::wire::{Answer, HEADER_BYTES, Header, Request, VERSION, request_frame};

use super::rig::PATIENCE;

pub struct RawClient {
    pub stream: UnixStream,
    last_id: u32,
}

impl RawClient {
    pub fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { stream, last_id: 0 }
    }

    pub fn greeted(path: &Path) -> Self {
        let mut client = Self::connect(path);
        let hello = Request::Hello {
            protocol: u16::from(VERSION),
            name: "raw".into(),
            process: 1,
        };
        assert!(matches!(client.ask(&hello), Answer::Welcome { .. }));
        client
    }

    pub fn send(&mut self, request: &Request<'_>) -> u32 {
        self.last_id += 1;
        self.stream
            .write_all(&request_frame(self.last_id, request).unwrap())
            .unwrap();
        self.last_id
    }

    /// The next answer; `None` when the daemon has closed the connection.
    pub fn answer(&mut self) -> Option<(u32, Answer)> {
        let mut header = [0; HEADER_BYTES];
        self.stream.read_exact(&mut header).ok()?;
        let header = Header::decode(&header).unwrap();
        let mut body = vec![0; header.body_bytes];
        self.stream.read_exact(&mut body).unwrap();
        Some((header.id, Answer::decode(header.kind, &body).unwrap()))
    }

    pub fn ask(&mut self, request: &Request<'_>) -> Answer {
        let id = self.send(request);
        let (answered, answer) = self.answer().expect("an answer");
        assert_eq!(answered, id);
        answer
    }

    pub fn open(&mut self) -> u32 {
        let identity = Box::new(super::rig::identity("model"));
        match self.ask(&Request::OpenNamespace {
            identity,
            layout: super::rig::layout(),
        }) {
            Answer::Opened { namespace } => namespace,
            other => panic!("{other:?}"),
        }
    }
}
