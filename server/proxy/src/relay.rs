//! The body of a streamed answer: whole events as they come, whatever happens to the instance they come from.
//!
//! An answer that was given back ("recomputed") goes on from another pair of instances. One that breaks ends with an event
//! that says so, and without `[DONE]`. A client that goes away lets go of this body, and with it of both instances.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use hyper::StatusCode;
use memchr::memmem;

use crate::access::Outcome;
use crate::answer::error_value;
use crate::legs::{Failure, Job, Next, Started, Stream};
use crate::recompute::{Generated, is_recomputed, rest_of};
use crate::sse::{EventSplitter, events};
use crate::usage::put_into_events;

/// The last event's data.
const DONE: &[u8] = b"[DONE]";
/// How often an answer may be given back.
const MAX_RECOMPUTES: u32 = 16;

type Resumed = (Box<Job>, Result<Started, Failure>);

enum State {
    Streaming(Box<Job>, Box<Stream>),
    Resuming(Pin<Box<dyn Future<Output = Resumed> + Send>>),
    Ended,
}

/// See the module's page.
pub struct Relay {
    state: State,
    generated: Generated,
    recomputes: u32,
    is_done: bool,
}

impl fmt::Debug for Relay {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Relay")
            .field("is_done", &self.is_done)
            .finish_non_exhaustive()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // a client that closes the connection once it has `[DONE]` got everything
        if self.is_done
            && let State::Streaming(mut job, stream) = std::mem::replace(&mut self.state, State::Ended)
        {
            end_well(&mut job, &stream);
        }
    }
}

impl Relay {
    /// Of an answer that has begun.
    pub fn new(job: Box<Job>, stream: Box<Stream>) -> Self {
        Self {
            state: State::Streaming(job, stream),
            generated: Generated::default(),
            recomputes: 0,
            is_done: false,
        }
    }

    /// The next bytes for the client; none at the end.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            match std::mem::replace(&mut self.state, State::Ended) {
                State::Ended => return Poll::Ready(None),
                State::Streaming(job, mut stream) => match stream.poll_next(context) {
                    Poll::Pending => {
                        self.state = State::Streaming(job, stream);
                        return Poll::Pending;
                    }
                    Poll::Ready(next) => {
                        if let Some(bytes) = self.take(job, stream, next) {
                            return Poll::Ready(Some(bytes));
                        }
                    }
                },
                State::Resuming(mut resumed) => match resumed.as_mut().poll(context) {
                    Poll::Pending => {
                        self.state = State::Resuming(resumed);
                        return Poll::Pending;
                    }
                    Poll::Ready((job, started)) => {
                        if let Some(bytes) = self.resume(job, started) {
                            return Poll::Ready(Some(bytes));
                        }
                    }
                },
            }
        }
    }

    /// Decides what follows from the stream's next piece, and returns what the client gets of it.
    fn take(&mut self, mut job: Box<Job>, mut stream: Box<Stream>, next: Next) -> Option<Bytes> {
        match next {
            Next::Events(run) => match self.look_at(&job, &run) {
                None => {
                    let run = with_prefill_s_count(&job, run);
                    job.access.sent_bytes += run.len() as u64;
                    self.state = State::Streaming(job, stream);
                    Some(run)
                }
                Some(end) => {
                    end_of_decode(&mut job, &stream);
                    // the instance has given the request back; what it still sends is of no use
                    drop(stream);
                    let before = run.slice(..end);
                    job.access.sent_bytes += before.len() as u64;
                    match self.recompute(job) {
                        Ok(()) => Some(before).filter(|before| !before.is_empty()),
                        Err(event) => Some([before, event].concat().into()),
                    }
                }
            },
            Next::End if self.is_done => {
                stream.finish();
                end_well(&mut job, &stream);
                None
            }
            // all that matters has come: the client needn't know how the connection ended
            Next::Broken(..) if self.is_done => {
                end_well(&mut job, &stream);
                None
            }
            Next::End => Some(end_broken(
                job,
                Some(&*stream),
                "broken",
                "the answer ended before [DONE]".into(),
            )),
            Next::Broken(reason, message) => Some(end_broken(job, Some(&*stream), reason, message)),
        }
    }

    /// Reads the events that pass through. Where one gives the request back, the place where it begins.
    fn look_at(&mut self, job: &Job, run: &[u8]) -> Option<usize> {
        let api = job.request.api;
        if memmem::find(run, b"recomputed").is_none() {
            for data in events(run) {
                if *data == *DONE {
                    self.is_done = true;
                } else {
                    self.generated.note_event(api, &data);
                }
            }
            return None;
        }
        // seldom enough to look for each event's place byte by byte
        let mut splitter = EventSplitter::new(run.len());
        let (mut begin, mut end) = (0, 0);
        for byte in run {
            end += 1;
            if let Ok(Some(_)) = splitter.push(Bytes::copy_from_slice(&[*byte])) {
                for data in events(run.get(begin..end).unwrap_or_default()) {
                    if is_recomputed(&data) {
                        return Some(begin);
                    }
                    self.is_done |= *data == *DONE;
                    self.generated.note_event(api, &data);
                }
                begin = end;
            }
        }
        None
    }

    /// Begins both legs again for the rest of the answer; the error is the event for the client.
    fn recompute(&mut self, mut job: Box<Job>) -> Result<(), Bytes> {
        self.recomputes += 1;
        let rest = if self.recomputes > MAX_RECOMPUTES {
            Err("the request was given back too often".to_owned())
        } else {
            rest_of(&job.request, &self.generated)
        };
        let rest = match rest {
            Ok(rest) => rest,
            Err(message) => return Err(end_broken(job, None, "recomputed", message)),
        };
        job.proxy().metrics.recomputed.inc();
        self.state = State::Resuming(Box::pin(async move {
            let started = job.run(&rest).await;
            (job, started)
        }));
        Ok(())
    }

    fn resume(&mut self, job: Box<Job>, started: Result<Started, Failure>) -> Option<Bytes> {
        match started {
            Ok(Started::Stream(stream)) => {
                self.state = State::Streaming(job, stream);
                None
            }
            Ok(Started::Whole(_)) => Some(end_broken(
                job,
                None,
                "answer",
                "the rest of the answer came in another form".into(),
            )),
            Err(failure) => Some(end_broken(job, None, "recomputed", failure.message())),
        }
    }
}

/// Puts into events what only the prefill instance knows.
fn with_prefill_s_count(job: &Job, run: Bytes) -> Bytes {
    match job.prefill_cached {
        // an instance may count without being asked
        Some(cached) => put_into_events(&run, cached).unwrap_or(run),
        _ => run,
    }
}

fn end_of_decode(job: &mut Job, stream: &Stream) {
    job.access.decode_time += stream.age();
    stream.instance().times.during.observe(stream.age().as_secs_f64());
}

fn end_well(job: &mut Job, stream: &Stream) {
    end_of_decode(job, stream);
    job.access.succeed();
}

/// Ends a stream with an event that says what happened.
fn end_broken(mut job: Box<Job>, stream: Option<&Stream>, reason: &'static str, message: String) -> Bytes {
    let status = if reason == "timeout" {
        StatusCode::GATEWAY_TIMEOUT
    } else {
        StatusCode::BAD_GATEWAY
    };
    if let Some(stream) = stream {
        end_of_decode(&mut job, stream);
        stream.instance().condition.failed();
        stream.instance().troubled.notify_one();
    }
    let mut event = BytesMut::from(&b"data: "[..]);
    event.extend_from_slice(error_value(status, &message).to_string().as_bytes());
    event.extend_from_slice(b"\n\n");
    job.access.fail(Outcome::Broken, message);
    job.access.sent_bytes += event.len() as u64;
    event.freeze()
}
