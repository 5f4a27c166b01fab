//! A session with the daemon over its Unix socket.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvstored_core::block::Namespace;
use kvstored_core::error::{Error, ErrorKind, Result};
use kvstored_core::memory::Arena;
use kvstored_core::runtime::Runtime;
use kvstored_core::tier::NamespaceInfo;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_send_buffer_size, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, recv, recvmsg, send, socket_with,
};

use crate::mapping::Mappings;
use crate::wire::{Answer, FrameBuffer, HEADER_BYTES, Header, Request, VERSION, request_frame};

use super::{Session, Ticket, unexpected};

/// A whole lookup of the usual size goes out at once.
const SEND_BUFFER_BYTES: usize = 1 << 20;

/// One connection. After an error of the connection itself it's of no more use.
pub(crate) struct SocketSession {
    socket: OwnedFd,
    runtime: Runtime,
    arena: Arc<Arena>,
    tier_names: Vec<String>,
    numbers: HashMap<Namespace, u32>,
    answers: HashMap<u32, Answer>,
    unanswered: usize,
    last_ticket: u32,
    buffer: FrameBuffer,
    broken: bool,
}

fn gone(error: impl std::fmt::Display) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        format!("the daemon's connection is gone: {error}"),
    )
}

fn late() -> Error {
    Error::new(ErrorKind::TimedOut, "the daemon doesn't answer")
}

/// Waits until the socket is ready; `false` at `until`.
fn ready(socket: &OwnedFd, flags: PollFlags, until: Instant, runtime: &Runtime) -> Result<bool> {
    loop {
        let left = until.saturating_duration_since(runtime.clock.now());
        let timeout = Timespec {
            tv_sec: left.as_secs().min(1 << 30) as i64,
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut polled = [PollFd::new(socket, flags)];
        match poll(&mut polled, Some(&timeout)) {
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(gone(error)),
        }
    }
}

impl SocketSession {
    /// Connects, says hello and maps the arena.
    ///
    /// Fails with `Unavailable` when nobody listens, and with what the daemon says where it turns the client
    /// away.
    pub(crate) fn open(
        path: &Path,
        mappings: &Mappings,
        runtime: &Runtime,
        deadline: Instant,
    ) -> Result<Self> {
        let unavailable = |error: Errno| {
            Error::new(ErrorKind::Unavailable, format!("no daemon answers: {error}"))
                .with("socket", path.display())
        };
        let address = SocketAddrUnix::new(path)
            .map_err(|_| Error::invalid("the socket's path is too long").with("socket", path.display()))?;
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|error| Error::from_io(error.into(), "can't open a socket"))?;
        let left = deadline
            .saturating_duration_since(runtime.clock.now())
            .max(Duration::from_millis(1));
        set_socket_timeout(&socket, Timeout::Send, Some(left)).map_err(unavailable)?;
        connect(&socket, &address).map_err(unavailable)?;
        rustix::io::ioctl_fionbio(&socket, true).map_err(unavailable)?;
        // less than asked for is fine, it only takes more calls
        let _ = set_socket_send_buffer_size(&socket, SEND_BUFFER_BYTES);
        let process = rustix::process::getpid().as_raw_nonzero().get() as u32;
        let hello = Request::Hello {
            protocol: u16::from(VERSION),
            name: "kvstored-client".into(),
            process,
        };
        write_all(&socket, &request_frame(0, &hello)?, deadline, runtime)?;
        let (welcome, file) = read_welcome(&socket, deadline, runtime)?;
        let (arena_bytes, tier_names) = match welcome {
            Answer::Welcome {
                arena_bytes,
                tier_names,
                ..
            } => (arena_bytes, tier_names),
            Answer::Error(failure) => return Err(Error::from(failure).with("socket", path.display())),
            other => return Err(unexpected(&other)),
        };
        let file = file.ok_or_else(|| Error::internal("the daemon's welcome came without its arena"))?;
        Ok(Self {
            arena: mappings.map(file, arena_bytes)?,
            socket,
            runtime: runtime.clone(),
            tier_names,
            numbers: HashMap::new(),
            answers: HashMap::new(),
            unanswered: 0,
            last_ticket: 0,
            buffer: FrameBuffer::default(),
            broken: false,
        })
    }

    fn send(&mut self, frame: &[u8], deadline: Instant) -> Result<()> {
        if self.broken {
            return Err(gone("an earlier error"));
        }
        // half a frame can't be taken back
        write_all(&self.socket, frame, deadline, &self.runtime).inspect_err(|_| self.broken = true)
    }

    /// Reads what is there and files whole answers.
    fn read(&mut self) -> Result<()> {
        match recv(&self.socket, self.buffer.space(), RecvFlags::empty()) {
            Ok((0, _)) => return Err(gone("closed by the daemon")),
            Ok((count, _)) => self.buffer.filled(count),
            Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
            Err(error) => return Err(gone(error)),
        }
        while let Some((header, body)) = self.buffer.next_frame()? {
            self.answers.insert(header.id, Answer::decode(header.kind, body)?);
        }
        Ok(())
    }
}

fn write_all(socket: &OwnedFd, mut rest: &[u8], deadline: Instant, runtime: &Runtime) -> Result<()> {
    while !rest.is_empty() {
        match send(socket, rest, SendFlags::NOSIGNAL) {
            Ok(count) => rest = rest.get(count..).unwrap_or_default(),
            Err(Errno::AGAIN) => {
                if !ready(socket, PollFlags::OUT, deadline, runtime)? {
                    return Err(late());
                }
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(gone(error)),
        }
    }
    Ok(())
}

/// The first answer, and the file descriptor that comes with it.
fn read_welcome(socket: &OwnedFd, deadline: Instant, runtime: &Runtime) -> Result<(Answer, Option<OwnedFd>)> {
    let mut received = Vec::new();
    let mut file = None;
    loop {
        if let Some(header) = received.first_chunk::<HEADER_BYTES>() {
            let header = Header::decode(header)?;
            if let Some(body) = received.get(HEADER_BYTES..HEADER_BYTES + header.body_bytes) {
                return Ok((Answer::decode(header.kind, body)?, file));
            }
        }
        if !ready(socket, PollFlags::IN, deadline, runtime)? {
            return Err(late());
        }
        let mut bytes = [0u8; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [std::io::IoSliceMut::new(&mut bytes)];
        let count = match recvmsg(socket.as_fd(), &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(message) if message.bytes == 0 => return Err(gone("closed by the daemon")),
            Ok(message) => message.bytes,
            Err(Errno::AGAIN | Errno::INTR) => continue,
            Err(error) => return Err(gone(error)),
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(files) = message {
                file = files.last().or(file);
            }
        }
        received.extend_from_slice(bytes.get(..count).unwrap_or_default());
    }
}

impl Session for SocketSession {
    fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    fn tier_names(&self) -> &[String] {
        &self.tier_names
    }

    fn is_alive(&mut self) -> bool {
        let mut polled = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        !self.broken && matches!(poll(&mut polled, Some(&at_once)), Ok(0))
    }

    fn is_reusable(&self) -> bool {
        !self.broken && self.unanswered == 0
    }

    fn namespace(&mut self, info: &Arc<NamespaceInfo>, deadline: Instant) -> Result<u32> {
        if let Some(number) = self.numbers.get(&info.namespace) {
            return Ok(*number);
        }
        let request = Request::OpenNamespace {
            identity: Box::new(info.identity.clone()),
            layout: info.layout.clone(),
        };
        match self.call(request, deadline)? {
            Answer::Opened { namespace } => {
                self.numbers.insert(info.namespace, namespace);
                Ok(namespace)
            }
            other => Err(unexpected(&other)),
        }
    }

    fn begin(&mut self, request: Request<'_>, deadline: Instant) -> Result<Ticket> {
        self.last_ticket = self.last_ticket.wrapping_add(1);
        let frame = request_frame(self.last_ticket, &request)?;
        self.send(&frame, deadline)?;
        self.unanswered += 1;
        Ok(Ticket(self.last_ticket))
    }

    fn finish(&mut self, ticket: Ticket, until: Instant) -> Result<Option<Answer>> {
        loop {
            if let Some(answer) = self.answers.remove(&ticket.0) {
                self.unanswered = self.unanswered.saturating_sub(1);
                return match answer {
                    Answer::Error(failure) => Err(failure.into()),
                    answer => Ok(Some(answer)),
                };
            }
            if self.broken {
                return Err(gone("an earlier error"));
            }
            if !ready(&self.socket, PollFlags::IN, until, &self.runtime)? {
                return Ok(None);
            }
            self.read().inspect_err(|_| self.broken = true)?;
        }
    }

    fn tell(&mut self, request: Request<'_>) {
        let deadline = self.runtime.deadline(Duration::from_secs(1));
        let sent = request_frame(0, &request).and_then(|frame| self.send(&frame, deadline));
        if let Err(error) = sent {
            tracing::debug!(%error, "one-way request not sent");
        }
    }
}
