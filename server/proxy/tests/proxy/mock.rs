//! Instances that do as they're told.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming};
use hyper::header::HeaderMap;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;

/// What an instance does with requests for completions.
#[derive(Clone, Debug)]
pub enum Behaviour {
    /// Answers.
    Good,
    /// Answers when it's let.
    Gated,
    /// A prefill of that engine, which can be followed; answers when it's let if that is said.
    Followed(&'static str, bool),
    /// Answers with that status.
    Status(u16, &'static str),
    /// Never answers.
    Hang,
    /// Closes the connection instead of answering.
    Close,
    /// Answers with that type and these pieces.
    Script(&'static str, Vec<Step>),
}

/// A piece of a scripted answer.
#[derive(Clone, Debug)]
pub enum Step {
    Data(String),
    /// The connection breaks.
    Break,
    /// Nothing comes any more.
    Stall,
}

/// A request as the instance saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub target: String,
    pub headers: HeaderMap,
    pub body: Value,
}

impl Seen {
    pub fn id(&self) -> &str {
        self.headers["x-request-id"].to_str().unwrap()
    }
}

pub struct State {
    name: String,
    /// Behaviours of the coming requests; the last one stays.
    behaviour: Mutex<VecDeque<Behaviour>>,
    seen: Mutex<Vec<Seen>>,
    health: Mutex<u16>,
    /// Answers that were let go before their end.
    cancelled: AtomicUsize,
    connections: AtomicUsize,
    /// Answers that hang end with a broken connection when this is told.
    break_pending: Notify,
    /// Permits for answers that wait.
    gate: Semaphore,
}

pub struct Mock {
    pub address: SocketAddr,
    pub state: Arc<State>,
    server: Option<tokio::task::JoinHandle<()>>,
}

impl Mock {
    pub async fn start(name: &str) -> Self {
        Self::start_at(name, "127.0.0.1:0".parse().unwrap()).await
    }

    pub async fn start_at(name: &str, address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            name: name.to_owned(),
            behaviour: Mutex::new(VecDeque::from([Behaviour::Good])),
            seen: Mutex::default(),
            health: Mutex::new(200),
            cancelled: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            break_pending: Notify::new(),
            gate: Semaphore::new(0),
        });
        let server = tokio::spawn(serve(listener, Arc::clone(&state)));
        Self {
            address,
            state,
            server: Some(server),
        }
    }

    pub fn behave(&self, behaviour: Behaviour) {
        self.behave_in_turn([behaviour]);
    }

    pub fn behave_in_turn(&self, behaviours: impl IntoIterator<Item = Behaviour>) {
        *self.state.behaviour.lock() = behaviours.into_iter().collect();
    }

    pub fn set_health(&self, status: u16) {
        *self.state.health.lock() = status;
    }

    /// Requests for completions so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().clone()
    }

    pub fn count(&self) -> usize {
        self.state.seen.lock().len()
    }

    pub fn cancelled(&self) -> usize {
        self.state.cancelled.load(Ordering::SeqCst)
    }

    /// Lets one answer go that waits, or will.
    pub fn let_go(&self) {
        self.state.gate.add_permits(1);
    }

    /// Breaks the connections of answers that hang.
    pub fn break_pending(&self) {
        self.state.break_pending.notify_waiters();
    }

    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// All its connections break and none is accepted any more.
    pub async fn kill(&mut self) {
        if let Some(server) = self.server.take() {
            server.abort();
            let _ = server.await;
        }
    }
}

impl Drop for Mock {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.abort();
        }
    }
}

async fn serve(listener: TcpListener, state: Arc<State>) {
    // dropped with this task, and all connections with it
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        state.connections.fetch_add(1, Ordering::SeqCst);
        let state = Arc::clone(&state);
        connections.spawn(async move {
            let service = service_fn(move |request| answer(Arc::clone(&state), request));
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer(state: Arc<State>, request: Request<Incoming>) -> Result<Response<Script>, io::Error> {
    let (head, body) = request.into_parts();
    let target = head.uri.to_string();
    if target == "/health" {
        let status = *state.health.lock();
        return Ok(reply(&state, status, "text/plain", []));
    }
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    state.seen.lock().push(Seen {
        target: target.clone(),
        headers: head.headers,
        body: body.clone(),
    });
    if target == "/v1/models" {
        let list = json!({"object": "list", "data": [{"id": state.name}]});
        return Ok(reply(
            &state,
            200,
            "application/json",
            [Step::Data(list.to_string())],
        ));
    }
    if !target.starts_with("/v1/") {
        return Ok(reply(&state, 200, "text/plain", []));
    }
    let behaviour = {
        let mut behaviours = state.behaviour.lock();
        if behaviours.len() > 1 {
            behaviours.pop_front()
        } else {
            behaviours.front().cloned()
        }
    };
    match behaviour.unwrap_or(Behaviour::Good) {
        Behaviour::Good => Ok(good(&state, &target, &body)),
        Behaviour::Gated => {
            wait(&state).await;
            Ok(good(&state, &target, &body))
        }
        Behaviour::Followed(engine, waits) => {
            if waits {
                wait(&state).await;
            }
            let answer = followed(engine, &body).to_string();
            Ok(reply(&state, 200, "application/json", [Step::Data(answer)]))
        }
        Behaviour::Status(status, text) => Ok(reply(
            &state,
            status,
            "application/json",
            [Step::Data(text.to_owned())],
        )),
        Behaviour::Hang => {
            let _pending = Pending(Arc::clone(&state));
            state.break_pending.notified().await;
            Err(io::ErrorKind::Other.into())
        }
        Behaviour::Close => Err(io::ErrorKind::Other.into()),
        Behaviour::Script(content_type, steps) => Ok(reply(&state, 200, content_type, steps)),
    }
}

async fn wait(state: &Arc<State>) {
    let pending = Pending(Arc::clone(state));
    state.gate.acquire().await.unwrap().forget();
    std::mem::forget(pending);
}

/// The answer of a prefill instance whose prompts can be followed.
pub fn followed(engine: &str, body: &Value) -> Value {
    let name = match body["kv_transfer_params"]["kvstored_transfer"].as_str() {
        Some(name) => format!("{name}:0123"),
        None => "plain".to_owned(),
    };
    json!({
        "choices": [{"text": "x"}],
        "kv_transfer_params": {
            "do_remote_prefill": true, "do_remote_decode": false, "kvstored_overlap": true, "remote_engine_id": engine,
            "remote_host": "10.0.0.1", "remote_port": 20001, "remote_ptp_size": 1, "remote_pp_size": 1,
            "remote_block_size": 128, "remote_block_ids": [1, 2], "remote_request_id": name,
        },
    })
}

/// What an answer that never comes leaves behind when it's given up.
struct Pending(Arc<State>);

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.cancelled.fetch_add(1, Ordering::SeqCst);
    }
}

fn good(state: &Arc<State>, target: &str, body: &Value) -> Response<Script> {
    if body["kv_transfer_params"]["do_remote_decode"] == true {
        let answer = json!({
            "choices": [{"text": "x"}],
            "kv_transfer_params": {
                "do_remote_prefill": true, "do_remote_decode": false, "remote_host": state.name,
                "remote_block_ids": [1, 2], "remote_request_id": "r",
            },
        });
        return reply(state, 200, "application/json", [Step::Data(answer.to_string())]);
    }
    let chat = target.contains("chat");
    if body["stream"] == true {
        return reply(state, 200, "text/event-stream; charset=utf-8", good_stream(chat));
    }
    let choice = if chat {
        json!({"message": {"role": "assistant", "content": "whole"}})
    } else {
        json!({"text": "whole"})
    };
    let answer = json!({"choices": [choice], "usage": {"completion_tokens": 1}, "from": state.name});
    reply(state, 200, "application/json", [Step::Data(answer.to_string())])
}

/// Sixteen events and the last.
pub fn good_stream(chat: bool) -> Vec<Step> {
    (0..16)
        .map(|index| event(chat, &format!(" t{index}"), None))
        .chain([Step::Data("data: [DONE]\n\n".to_owned())])
        .collect()
}

pub fn event(chat: bool, text: &str, stop_reason: Option<&str>) -> Step {
    let mut choice = if chat {
        json!({"delta": {"content": text}})
    } else {
        json!({"text": text})
    };
    choice["stop_reason"] = json!(stop_reason);
    Step::Data(format!("data: {}\n\n", json!({"choices": [choice]})))
}

fn reply(
    state: &Arc<State>,
    status: u16,
    content_type: &'static str,
    steps: impl IntoIterator<Item = Step>,
) -> Response<Script> {
    let script = Script {
        steps: steps.into_iter().collect(),
        is_flushed: false,
        state: Arc::clone(state),
    };
    Response::builder()
        .status(status)
        .header("content-type", content_type)
        .body(script)
        .unwrap()
}

/// A scripted body.
pub struct Script {
    steps: VecDeque<Step>,
    is_flushed: bool,
    state: Arc<State>,
}

impl Body for Script {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match self.steps.pop_front() {
            None => Poll::Ready(None),
            Some(Step::Data(text)) => Poll::Ready(Some(Ok(Frame::data(Bytes::from(text))))),
            Some(Step::Break) if self.is_flushed => Poll::Ready(Some(Err(io::ErrorKind::BrokenPipe.into()))),
            Some(Step::Break) => {
                // what came before has to be on its way first
                self.is_flushed = true;
                self.steps.push_front(Step::Break);
                context.waker().wake_by_ref();
                Poll::Pending
            }
            Some(Step::Stall) => {
                // nobody will wake it, and it stays where it is
                self.steps.push_front(Step::Stall);
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.steps.is_empty()
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        if !self.steps.is_empty() {
            self.state.cancelled.fetch_add(1, Ordering::SeqCst);
        }
    }
}
