//! One client: reads requests, has them answered, and gives everything back at the end.

use std::io::ErrorKind as ErrorKindOfIo;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kvstored_client::service::{Reply, Service};
use kvstored_client::wire::{Answer, FrameBuffer, Header, Request, VERSION};
use kvstored_core::error::{Error, ErrorKind, Result};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::Instant;

use super::outgoing::Outgoing;
use super::shared::{Phase, Shared};

/// How often a draining connection looks whether its work is done.
const DRAIN_INTERVAL: Duration = Duration::from_millis(5);

struct Connection {
    shared: Arc<Shared>,
    service: Arc<Service>,
    outgoing: Arc<Outgoing>,
    greeted: bool,
}

/// Serves a client until it leaves, misbehaves, or the daemon stops.
pub(super) async fn serve(shared: Arc<Shared>, socket: Arc<UnixStream>, phase: watch::Receiver<Phase>) {
    let outgoing = Outgoing::new(socket.clone(), shared.settings.max_unread_bytes);
    let service = Service::new(shared.engine.clone(), shared.service_settings());
    let mut connection = Connection {
        shared,
        service,
        outgoing,
        greeted: false,
    };
    connection.run(&socket, phase).await;
    connection.outgoing.close();
    connection.service.close();
}

impl Connection {
    async fn run(&mut self, socket: &UnixStream, mut phase: watch::Receiver<Phase>) {
        let mut buffer = FrameBuffer::default();
        let frame_timeout = self.shared.settings.frame_timeout;
        // when the frame under way, or the hello, must be complete
        let mut frame_deadline = Some(Instant::now() + frame_timeout);
        loop {
            if self.outgoing.is_closed() {
                return;
            }
            let draining = match *phase.borrow() {
                Phase::Serving => None,
                Phase::Draining(until) => Some(until),
            };
            if let Some(until) = draining
                && (Instant::now() >= until || self.is_done())
            {
                return;
            }
            tokio::select! {
                biased;
                readable = socket.readable() => {
                    if readable.is_err() {
                        return;
                    }
                    match socket.try_read(buffer.space()) {
                        Ok(0) => return,
                        Ok(count) => buffer.filled(count),
                        Err(error) if error.kind() == ErrorKindOfIo::WouldBlock => continue,
                        Err(error) => {
                            tracing::debug!(%error, "client is gone");
                            return;
                        }
                    }
                    let complete = match self.take_frames(&mut buffer, draining.is_some()) {
                        Ok(complete) => complete,
                        Err((id, error)) => {
                            self.shared.bad_frames.fetch_add(1, Ordering::Relaxed);
                            tracing::debug!(%error, "connection closed");
                            self.outgoing.answer(id, &Answer::error(error));
                            return;
                        }
                    };
                    frame_deadline = match (buffer.is_partial() || !self.greeted, frame_deadline) {
                        (false, _) => None,
                        (true, Some(deadline)) if !complete => Some(deadline),
                        (true, _) => Some(Instant::now() + frame_timeout),
                    };
                }
                () = self.outgoing.changed.notified() => {}
                _ = socket.writable(), if self.outgoing.has_backlog() => {
                    // "would block" is what makes the next wait one
                    let flush = || if self.outgoing.flush() { Ok(()) } else { Err(ErrorKindOfIo::WouldBlock.into()) };
                    let _ = socket.try_io(Interest::WRITABLE, flush);
                }
                () = tokio::time::sleep_until(frame_deadline.unwrap_or_else(Instant::now)), if frame_deadline.is_some() => {
                    tracing::debug!("a client left a frame unfinished; connection closed");
                    return;
                }
                _ = phase.changed() => {}
                () = tokio::time::sleep(DRAIN_INTERVAL), if draining.is_some() => {}
            }
        }
    }

    fn is_done(&self) -> bool {
        self.service.unfinished() == 0 && !self.outgoing.has_backlog()
    }

    /// Handles every whole frame; whether there was one. An error closes the connection.
    fn take_frames(&mut self, buffer: &mut FrameBuffer, draining: bool) -> Result<bool, (u32, Error)> {
        let mut complete = false;
        while let Some((header, body)) = buffer.next_frame().map_err(|error| (0, error))? {
            complete = true;
            match Request::decode(header.kind, body) {
                Ok(request) if self.greeted => self.handle(header, request, draining),
                Ok(request) => self
                    .greet(header.id, &request)
                    .map_err(|error| (header.id, error))?,
                Err(error) if self.greeted => {
                    self.shared.bad_frames.fetch_add(1, Ordering::Relaxed);
                    self.outgoing.answer(header.id, &Answer::error(error));
                }
                Err(error) => return Err((header.id, error)),
            }
        }
        Ok(complete)
    }

    fn greet(&mut self, id: u32, request: &Request<'_>) -> Result<()> {
        let Request::Hello {
            protocol,
            name,
            process,
        } = request
        else {
            return Err(Error::invalid(
                "the first message of a connection must be a hello",
            ));
        };
        if *protocol != u16::from(VERSION) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("the client speaks protocol {protocol}, this daemon {VERSION}"),
            ));
        }
        tracing::debug!(client = name, process, "client connected");
        let welcome = Answer::Welcome {
            protocol: u16::from(VERSION),
            arena_bytes: self.shared.engine.arena().length() as u64,
            tier_names: self.shared.tier_names.clone(),
        };
        self.greeted = true;
        self.outgoing.welcome(id, &welcome, self.shared.arena())
    }

    fn handle(&self, header: Header, request: Request<'static>, draining: bool) {
        let outgoing = self.outgoing.clone();
        let reply: Reply = Box::new(move |answer| outgoing.answer(header.id, &answer));
        if draining && begins_work(&request) {
            return reply(Answer::error(Error::new(
                ErrorKind::Unavailable,
                "the daemon is shutting down",
            )));
        }
        if request.is_slow() {
            return self.shared.run_slow(self.service.clone(), request, reply);
        }
        let may_wait = matches!(&request, Request::Reserve { .. });
        self.service.handle(request, reply);
        if may_wait && self.shared.engine.parked_requests() > 0 {
            self.shared.parked.notify_one();
        }
    }
}

/// Whether a shutdown should not let this begin. What ends work (commits, releases) still goes through.
fn begins_work(request: &Request<'_>) -> bool {
    matches!(
        request,
        Request::OpenNamespace { .. }
            | Request::Acquire { .. }
            | Request::Reserve { .. }
            | Request::Prefetch { .. }
            | Request::Verify { .. }
            | Request::Drain { .. }
    )
}
