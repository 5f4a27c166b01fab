//! A daemon's stand-in on a socket: it answers from an engine, until it's told to stop in its tracks.

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;

use kvstored_core::engine::Engine;
use parking_lot::{Condvar, Mutex};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketType,
};

use super::rig::Rig;
use crate::service::{Reply, Service, ServiceSettings};
use crate::wire::{Answer, FrameBuffer, Request, VERSION, answer_frame};

type Condition = Box<dyn FnMut(&Request<'_>) -> bool + Send>;

#[derive(Default)]
struct State {
    stopped: bool,
    /// Requests that make it stop before they're answered.
    stop_at: Option<Condition>,
}

#[derive(Default)]
struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

impl Gate {
    fn pass(&self, request: Option<&Request<'_>>) {
        let mut state = self.state.lock();
        if let (Some(condition), Some(request)) = (&mut state.stop_at, request)
            && condition(request)
        {
            state.stop_at = None;
            state.stopped = true;
        }
        while state.stopped {
            self.changed.wait(&mut state);
        }
    }
}

pub struct Peer {
    pub path: PathBuf,
    gate: Arc<Gate>,
    _directory: tempfile::TempDir,
}

impl Peer {
    /// Serves the rig's engine.
    pub fn new(rig: &Rig) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("peer.sock");
        let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        rustix::net::bind(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        // once it has stopped, a second client in line is one too many
        rustix::net::listen(&socket, 1).unwrap();
        let listener = UnixListener::from(socket);
        let gate = Arc::new(Gate::default());
        let (engine, own) = (rig.engine.clone(), gate.clone());
        let arena = rig.cache.arena_fd().unwrap().try_clone_to_owned().unwrap();
        std::thread::Builder::new()
            .spawn(move || {
                for stream in listener.incoming() {
                    let (engine, gate, arena) = (engine.clone(), own.clone(), arena.try_clone().unwrap());
                    gate.pass(None);
                    std::thread::Builder::new()
                        .spawn(move || serve(&gate, engine, &stream.unwrap(), &arena))
                        .unwrap();
                }
            })
            .unwrap();
        Self {
            path,
            gate,
            _directory: directory,
        }
    }

    /// From now on it neither accepts nor reads nor answers.
    pub fn stop(&self) {
        self.gate.state.lock().stopped = true;
    }

    /// Stops before it answers the first request that meets the condition.
    pub fn stop_at(&self, condition: impl FnMut(&Request<'_>) -> bool + Send + 'static) {
        self.gate.state.lock().stop_at = Some(Box::new(condition));
    }

    pub fn is_stopped(&self) -> bool {
        self.gate.state.lock().stopped
    }

    /// Goes on where it stopped.
    pub fn go_on(&self) {
        self.gate.state.lock().stopped = false;
        self.gate.changed.notify_all();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.go_on();
    }
}

fn serve(gate: &Gate, engine: Arc<Engine>, stream: &UnixStream, arena: &OwnedFd) {
    let tier_names = engine.tier_names();
    let service = Service::new(engine, ServiceSettings::default());
    let mut buffer = FrameBuffer::default();
    loop {
        gate.pass(None);
        match (&*stream).read(buffer.space()) {
            Ok(0) | Err(_) => break,
            Ok(count) => buffer.filled(count),
        }
        while let Some((header, body)) = buffer.next_frame().unwrap() {
            let request = Request::decode(header.kind, body).unwrap();
            gate.pass(Some(&request));
            if let Request::Hello { .. } = request {
                let welcome = Answer::Welcome {
                    protocol: u16::from(VERSION),
                    arena_bytes: service.engine().arena().length() as u64,
                    tier_names: tier_names.clone(),
                };
                let files = [arena.as_fd()];
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                assert!(control.push(SendAncillaryMessage::ScmRights(&files)));
                let frame = answer_frame(header.id, &welcome).unwrap();
                let flags = SendFlags::NOSIGNAL;
                // the client may be gone already
                let _ = rustix::net::sendmsg(stream, &[IoSlice::new(&frame)], &mut control, flags);
                continue;
            }
            let answers = stream.try_clone().unwrap();
            let reply: Reply = Box::new(move |answer| {
                let _ = (&answers).write_all(&answer_frame(header.id, &answer).unwrap());
            });
            service.handle(request, reply);
        }
    }
    service.close();
}
