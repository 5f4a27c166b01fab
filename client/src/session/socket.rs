//! A session with the daemon over its Unix socket.

use std::collections::{HashMap, VecDeque};
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
use rustix::net::sockopt::set_socket_send_buffer_size;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, recv, recvmsg, send, socket_with,
};

use crate::mapping::Mappings;
use crate::wire::{
    Answer, FrameBuffer, HEADER_BYTES, Header, MAX_FRAME_BYTES, Request, VERSION, request_frame,
};

use super::{Session, Ticket, Until, unexpected};

/// A whole lookup of the usual size goes out at once.
const SEND_BUFFER_BYTES: usize = 1 << 20;
/// Between two attempts to connect to a listener whose line is full.
const CONNECT_PAUSE: Duration = Duration::from_millis(10);

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
    /// Requests that the socket hasn't taken yet.
    outgoing: VecDeque<u8>,
    broken: bool,
}

fn gone(error: impl std::fmt::Display) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        format!("the daemon's connection is gone: {error}"),
    )
}

/// Waits until the socket is ready for one of the flags, and says for which; for none at `until`.
fn ready(socket: &OwnedFd, flags: PollFlags, until: Instant, runtime: &Runtime) -> Result<PollFlags> {
    loop {
        let left = until.saturating_duration_since(runtime.clock.now());
        let mut polled = [PollFd::new(socket, flags)];
        match poll(&mut polled, Some(&timespec(left))) {
            Ok(0) if left.is_zero() => return Ok(PollFlags::empty()),
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(polled[0].revents()),
            Err(error) => return Err(gone(error)),
        }
    }
}

/// Waits until the socket is ready. Fails as `until` says.
fn await_ready(socket: &OwnedFd, flags: PollFlags, until: Until<'_>, runtime: &Runtime) -> Result<()> {
    while ready(socket, flags, until.slice(runtime), runtime)?.is_empty() {
        until.check(runtime)?;
    }
    Ok(())
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: duration.as_secs().min(1 << 30) as i64,
        tv_nsec: duration.subsec_nanos().into(),
    }
}

/// Connects without blocking in the system; a listener whose line is full is asked again.
fn connect_until(
    socket: &OwnedFd,
    address: &SocketAddrUnix,
    until: Until<'_>,
    runtime: &Runtime,
) -> Result<(), Error> {
    loop {
        match connect(socket, address) {
            Ok(()) => return Ok(()),
            Err(Errno::AGAIN | Errno::INTR) => {
                until.check(runtime)?;
                // nothing tells when there's room in the line
                let _ = poll(&mut [], Some(&timespec(CONNECT_PAUSE)));
            }
            Err(error) => {
                return Err(Error::new(
                    ErrorKind::Unavailable,
                    format!("no daemon answers: {error}"),
                ));
            }
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
        until: Until<'_>,
    ) -> Result<Self> {
        let address = SocketAddrUnix::new(path)
            .map_err(|_| Error::invalid("the socket's path is too long").with("socket", path.display()))?;
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )
        .map_err(|error| Error::from_io(error.into(), "can't open a socket"))?;
        connect_until(&socket, &address, until, runtime)
            .map_err(|error| error.with("socket", path.display()))?;
        // less than asked for is fine, it only takes more calls
        let _ = set_socket_send_buffer_size(&socket, SEND_BUFFER_BYTES);
        let process = rustix::process::getpid().as_raw_nonzero().get() as u32;
        let hello = Request::Hello {
            protocol: u16::from(VERSION),
            name: "kvstored-client".into(),
            process,
        };
        write_all(&socket, &request_frame(0, &hello)?, until, runtime)?;
        let (welcome, file) = read_welcome(&socket, until, runtime)?;
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
            outgoing: VecDeque::new(),
            broken: false,
        })
    }

    /// Sends a frame, or puts it in line behind others that the socket doesn't take now.
    fn send(&mut self, frame: &[u8]) -> Result<()> {
        if self.broken {
            return Err(gone("an earlier error"));
        }
        if self.outgoing.len() > MAX_FRAME_BYTES {
            self.broken = true;
            return Err(Error::new(
                ErrorKind::Unavailable,
                "the daemon doesn't read its requests",
            ));
        }
        let mut rest = frame;
        while self.outgoing.is_empty() && !rest.is_empty() {
            match self.send_now(rest)? {
                0 => break,
                sent => rest = rest.get(sent..).unwrap_or_default(),
            }
        }
        self.outgoing.extend(rest);
        Ok(())
    }

    /// Sends what is in line, as far as the socket takes it.
    fn flush(&mut self) -> Result<()> {
        while !self.outgoing.is_empty() {
            let line = std::mem::take(&mut self.outgoing);
            let sent = self.send_now(line.as_slices().0);
            self.outgoing = line;
            match sent? {
                0 => return Ok(()),
                sent => drop(self.outgoing.drain(..sent)),
            }
        }
        self.outgoing = VecDeque::new();
        Ok(())
    }

    /// How many bytes of this the socket takes now.
    fn send_now(&mut self, bytes: &[u8]) -> Result<usize> {
        loop {
            match send(&self.socket, bytes, SendFlags::NOSIGNAL) {
                Ok(count) => return Ok(count),
                Err(Errno::AGAIN) => return Ok(0),
                Err(Errno::INTR) => {}
                Err(error) => {
                    self.broken = true;
                    return Err(gone(error));
                }
            }
        }
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

fn write_all(socket: &OwnedFd, mut rest: &[u8], until: Until<'_>, runtime: &Runtime) -> Result<()> {
    while !rest.is_empty() {
        match send(socket, rest, SendFlags::NOSIGNAL) {
            Ok(count) => rest = rest.get(count..).unwrap_or_default(),
            Err(Errno::AGAIN) => await_ready(socket, PollFlags::OUT, until, runtime)?,
            Err(Errno::INTR) => {}
            Err(error) => return Err(gone(error)),
        }
    }
    Ok(())
}

/// The first answer, and the file descriptor that comes with it.
fn read_welcome(socket: &OwnedFd, until: Until<'_>, runtime: &Runtime) -> Result<(Answer, Option<OwnedFd>)> {
    let mut received = Vec::new();
    let mut file = None;
    loop {
        if let Some(header) = received.first_chunk::<HEADER_BYTES>() {
            let header = Header::decode(header)?;
            if let Some(body) = received.get(HEADER_BYTES..HEADER_BYTES + header.body_bytes) {
                return Ok((Answer::decode(header.kind, body)?, file));
            }
        }
        await_ready(socket, PollFlags::IN, until, runtime)?;
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
        // what is still in line would reach the daemon at the next use: too late for what it gives back
        !self.broken && self.unanswered == 0 && self.outgoing.is_empty()
    }

    fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    fn namespace(&mut self, info: &Arc<NamespaceInfo>, until: Until<'_>) -> Result<u32> {
        if let Some(number) = self.numbers.get(&info.namespace) {
            return Ok(*number);
        }
        let request = Request::OpenNamespace {
            identity: Box::new(info.identity.clone()),
            layout: info.layout.clone(),
        };
        match self.call(request, until)? {
            Answer::Opened { namespace } => {
                self.numbers.insert(info.namespace, namespace);
                Ok(namespace)
            }
            other => Err(unexpected(&other)),
        }
    }

    fn begin(&mut self, request: Request<'_>) -> Result<Ticket> {
        self.last_ticket = self.last_ticket.wrapping_add(1);
        let frame = request_frame(self.last_ticket, &request)?;
        self.send(&frame)?;
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
            let mut flags = PollFlags::IN;
            flags.set(PollFlags::OUT, !self.outgoing.is_empty());
            let found = ready(&self.socket, flags, until, &self.runtime)?;
            if found.is_empty() {
                return Ok(None);
            }
            if found.contains(PollFlags::OUT) {
                self.flush()?;
            }
            if found != PollFlags::OUT {
                self.read().inspect_err(|_| self.broken = true)?;
            }
        }
    }

    fn tell(&mut self, request: Request<'_>) {
        let sent = request_frame(0, &request).and_then(|frame| self.send(&frame));
        if let Err(error) = sent {
            tracing::debug!(%error, "one-way request not sent");
        }
    }
}
