//! The decode leg, up to the answer's first event; what follows is read from the [`Stream`].

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::body::{Body, Incoming};
use hyper::header::HeaderValue;
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use super::exchange::{Trouble, Whole, content_type, exchange, read_whole};
use super::{Job, judge};
use crate::choice::{Tried, choose, decode_cost};
use crate::instance::{Active, Instance, Lease, Received, Role};
use crate::request::CompletionRequest;
use crate::sse::EventSplitter;

/// The largest event of a stream.
const MAX_EVENT_BYTES: usize = 1 << 20;
/// Events that are there already go out together, up to about so many bytes.
const GATHERED_BYTES: usize = 16 << 10;
/// How the type of a streamed answer begins.
const EVENT_STREAM: &[u8] = b"text/event-stream";

/// How a decode instance gets a prompt's KV.
#[derive(Debug, Default)]
pub struct Way {
    /// Where it lies, in the prefill instance's words.
    pub transfer: Option<Bytes>,
    /// To be set when a decode instance may have seen it.
    pub begun: Option<Arc<AtomicBool>>,
    /// How long it may take until it is there.
    pub computed_within: Duration,
}

/// An answer that has begun.
#[derive(Debug)]
pub enum Started {
    /// The whole of it.
    Whole(Whole),
    /// Its first events, and where the others come from.
    Stream(Box<Stream>),
}

impl Job {
    /// Has a decode instance pull the KV and begin to answer.
    pub(super) async fn decode(
        &mut self,
        request: &CompletionRequest,
        way: Way,
        tried: &mut Tried,
    ) -> Result<Started, Trouble> {
        let fleet = &self.proxy.fleet;
        let instances = fleet.instances(Role::Decode);
        let instance = choose(&instances, tried, fleet.next_turn(Role::Decode), decode_cost)
            .ok_or_else(|| Trouble::nobody(Self::nobody("decode")))?;
        self.access.decode = Some(Arc::clone(&instance));
        let done = self.decode_at(request, way, &instance).await;
        judge(&instance, done.as_ref().err());
        if done.is_err() {
            tried.note(&instance);
        }
        done
    }

    async fn decode_at(
        &mut self,
        request: &CompletionRequest,
        way: Way,
        instance: &Arc<Instance>,
    ) -> Result<Started, Trouble> {
        let active = Active::new(Arc::clone(instance), request.tokens);
        let mut upstream = self.upstream(request, request.decode_body(way.transfer.as_ref()));
        upstream.begun = way.begun;
        let sent = Instant::now();
        let started = if request.stream {
            let limit = self
                .proxy
                .settings
                .first_event_timeout
                .saturating_add(way.computed_within);
            let open = async {
                let received = instance
                    .pool
                    .send(&upstream)
                    .await
                    .map_err(|error| Trouble::connection(instance, error))?;
                open_stream(received, active, self.proxy.settings.event_timeout, self.deadline).await
            };
            timeout(limit, open)
                .await
                .map_err(|_| Trouble::late(instance, limit))??
        } else {
            // the first byte comes when the answer is complete
            let whole = exchange(instance, &upstream, self.proxy.settings.request_timeout).await?;
            if whole.body.is_empty() {
                return Err(empty(instance));
            }
            Started::Whole(whole)
        };
        self.access.transfer_time = sent.elapsed();
        instance
            .times
            .before
            .observe(self.access.transfer_time.as_secs_f64());
        Ok(started)
    }
}

fn empty(instance: &Arc<Instance>) -> Trouble {
    Trouble::at(
        instance,
        StatusCode::BAD_GATEWAY,
        "empty",
        "gave an empty answer",
        "the body ended before its first event",
    )
}

/// Waits for the first whole event. Until then the leg can be tried elsewhere.
async fn open_stream(
    received: Received,
    active: Active,
    event_timeout: Duration,
    deadline: Instant,
) -> Result<Started, Trouble> {
    let Received {
        head,
        mut body,
        lease,
    } = received;
    let instance = Arc::clone(active.instance());
    let content_type = content_type(&head);
    if !head.status.is_success() || !content_type.as_bytes().starts_with(EVENT_STREAM) {
        let whole = read_whole(&instance, &head, body, lease).await?;
        if !whole.status.is_success() {
            return Err(Trouble::status(&instance, whole));
        }
        if whole.body.is_empty() {
            return Err(empty(&instance));
        }
        return Ok(Started::Whole(whole));
    }
    let mut splitter = EventSplitter::new(MAX_EVENT_BYTES);
    let broken = |detail: &dyn std::fmt::Display| {
        Trouble::at(
            &instance,
            StatusCode::BAD_GATEWAY,
            "broken",
            "broke its answer off",
            detail,
        )
    };
    let first = loop {
        let Some(frame) = body.frame().await else {
            return Err(empty(&instance));
        };
        let Ok(data) = frame.map_err(|error| broken(&error))?.into_data() else {
            continue;
        };
        match splitter.push(data) {
            Ok(Some(run)) => break run,
            Ok(None) => {}
            Err(_) => return Err(broken(&"its first event is too long")),
        }
    };
    let now = Instant::now();
    Ok(Started::Stream(Box::new(Stream {
        content_type,
        gathered: first,
        has_yielded: false,
        after: None,
        body,
        lease: Some(lease),
        splitter,
        active,
        began: now,
        last: now,
        event_timeout,
        deadline,
        timer: Box::pin(sleep_until(deadline.min(now + event_timeout))),
    })))
}

/// A streamed answer under way. Letting go of it before its end closes the connection.
#[derive(Debug)]
pub struct Stream {
    /// The type of the body.
    pub content_type: HeaderValue,
    /// Events that go out with the next ones, if those are about to come.
    gathered: Bytes,
    /// Others had their turn since the last event came.
    has_yielded: bool,
    /// What follows the gathered events.
    after: Option<Next>,
    body: Incoming,
    lease: Option<Lease>,
    splitter: EventSplitter,
    active: Active,
    began: Instant,
    last: Instant,
    event_timeout: Duration,
    deadline: Instant,
    timer: Pin<Box<Sleep>>,
}

/// What comes next in a stream.
#[derive(Debug)]
pub enum Next {
    /// Whole events.
    Events(Bytes),
    /// The end of the body, between two events.
    End,
    /// Something that isn't the end. It's no use to ask again.
    Broken(&'static str, String),
}

impl Stream {
    /// Whose stream.
    pub fn instance(&self) -> &Arc<Instance> {
        self.active.instance()
    }

    /// Time since the first event.
    pub fn age(&self) -> Duration {
        self.began.elapsed()
    }

    /// Keeps the connection, once [`Next::End`] has come.
    pub fn finish(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
    }

    /// The next events. The connection hands over one piece at a time, so before events go out it gets the turn to hand over
    /// more: what came together leaves together, in one write instead of many.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Next> {
        if let Some(after) = self.after.take() {
            return Poll::Ready(after);
        }
        while self.gathered.len() < GATHERED_BYTES {
            match self.poll_one(context) {
                Poll::Ready(Next::Events(run)) => {
                    self.has_yielded = false;
                    self.gather(run);
                }
                Poll::Ready(end) if self.gathered.is_empty() => return Poll::Ready(end),
                Poll::Ready(end) => {
                    self.after = Some(end);
                    break;
                }
                Poll::Pending if self.gathered.is_empty() => return Poll::Pending,
                Poll::Pending if self.has_yielded => break,
                Poll::Pending => {
                    self.has_yielded = true;
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
            }
        }
        self.has_yielded = false;
        Poll::Ready(Next::Events(std::mem::take(&mut self.gathered)))
    }

    fn gather(&mut self, run: Bytes) {
        if self.gathered.is_empty() {
            self.gathered = run;
            return;
        }
        // the same memory again if nobody else has it
        let mut all = match std::mem::take(&mut self.gathered).try_into_mut() {
            Ok(all) => all,
            Err(shared) => {
                let mut all = BytesMut::with_capacity(GATHERED_BYTES.min(4 * (shared.len() + run.len())));
                all.extend_from_slice(&shared);
                all
            }
        };
        all.extend_from_slice(&run);
        self.gathered = all.freeze();
    }

    fn poll_one(&mut self, context: &mut Context<'_>) -> Poll<Next> {
        loop {
            let frame = match Pin::new(&mut self.body).poll_frame(context) {
                Poll::Ready(frame) => frame,
                Poll::Pending => {
                    ready!(self.poll_timer(context));
                    return Poll::Ready(Next::Broken(
                        "timeout",
                        "the next event did not come in time".into(),
                    ));
                }
            };
            let data = match frame {
                None if self.splitter.is_between_events() => return Poll::Ready(Next::End),
                None => return Poll::Ready(Next::Broken("broken", "the answer ends inside an event".into())),
                Some(Err(error)) => {
                    return Poll::Ready(Next::Broken("broken", format!("the answer broke off: {error}")));
                }
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => data,
                    Err(_) => continue,
                },
            };
            self.last = Instant::now();
            match self.splitter.push(data) {
                Ok(Some(run)) => return Poll::Ready(Next::Events(run)),
                Ok(None) => {}
                Err(_) => return Poll::Ready(Next::Broken("too_large", "an event is too long".into())),
            }
        }
    }

    /// Ready when the stream has paused for too long. The timer isn't set anew for each event, only when it goes off.
    fn poll_timer(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.timer.as_mut().poll(context));
            let limit = self.deadline.min(self.last + self.event_timeout);
            if Instant::now() >= limit {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(limit);
        }
    }
}
