//! An instance's KV events over real ZeroMQ sockets, made by another implementation than the proxy's.

use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use zeromq::{Endpoint, PubSocket, RouterSocket, Socket, SocketRecv, SocketSend, ZmqMessage};

type Past = Arc<Mutex<Vec<(u64, Vec<u8>)>>>;

pub struct Publisher {
    socket: PubSocket,
    pub events: String,
    pub replay: String,
    next: u64,
    past: Past,
    replayer: JoinHandle<()>,
    stop: oneshot::Sender<()>,
}

fn local(endpoint: &Endpoint) -> String {
    endpoint.to_string().replace("tcp://", "")
}

impl Publisher {
    pub async fn start() -> Self {
        Self::start_at("127.0.0.1:0", "127.0.0.1:0").await
    }

    pub async fn start_at(events: &str, replay: &str) -> Self {
        let mut socket = PubSocket::new();
        let events = socket.bind(&format!("tcp://{events}")).await.unwrap();
        let mut router = RouterSocket::new();
        let replay = router.bind(&format!("tcp://{replay}")).await.unwrap();
        let past = Past::default();
        let (stop, stopped) = oneshot::channel();
        let replayer = tokio::spawn(serve_replays(router, Arc::clone(&past), stopped));
        Self {
            socket,
            events: local(&events),
            replay: local(&replay),
            next: 0,
            past,
            replayer,
            stop,
        }
    }

    /// The flags for proxies that follow these.
    pub fn flags(publishers: &[Self], with_replay: bool) -> String {
        let listed = |flag: &str, address: fn(&Self) -> &str| {
            let all: Vec<&str> = publishers.iter().map(address).collect();
            format!(" {flag} {}", all.join(" "))
        };
        let mut flags = listed("--prefiller-kv-events", |publisher| &publisher.events);
        if with_replay {
            flags += &listed("--prefiller-kv-replays", |publisher| &publisher.replay);
        }
        flags
    }

    /// Sends a batch.
    pub async fn publish(&mut self, events: Value) {
        let (number, payload) = self.keep(&events);
        self.send(number, payload).await;
    }

    /// Makes a batch that doesn't arrive.
    pub fn lose(&mut self, events: Value) {
        self.keep(&events);
    }

    /// Can't send again what was before now.
    pub fn forget_past(&mut self) {
        self.past.lock().clear();
    }

    /// Sends a batch of nothing, which shows the subscriber what it has missed.
    pub async fn tick(&mut self) {
        self.publish(json!([])).await;
    }

    /// Sends bytes as a batch.
    pub async fn garbage(&mut self, payload: &[u8]) {
        let number = self.next;
        self.next += 1;
        self.past.lock().push((number, payload.to_vec()));
        self.send(number, payload.to_vec()).await;
    }

    /// Sends a message of those frames.
    pub async fn frames(&mut self, frames: &[&[u8]]) {
        let mut message = ZmqMessage::from(frames[0].to_vec());
        for frame in &frames[1..] {
            message.push_back(frame.to_vec().into());
        }
        self.socket.send(message).await.unwrap();
    }

    pub async fn stop(self) {
        self.stop.send(()).unwrap();
        self.replayer.await.unwrap();
        self.socket.close().await;
    }

    fn keep(&mut self, events: &Value) -> (u64, Vec<u8>) {
        let number = self.next;
        self.next += 1;
        let payload = rmp_serde::to_vec(&(1.5, events, 0)).unwrap();
        self.past.lock().push((number, payload.clone()));
        (number, payload)
    }

    async fn send(&mut self, number: u64, payload: Vec<u8>) {
        self.frames(&[b"kv", &number.to_be_bytes(), &payload]).await;
    }
}

async fn serve_replays(mut router: RouterSocket, past: Past, mut stopped: oneshot::Receiver<()>) {
    loop {
        let request = tokio::select! {
            request = router.recv() => request.unwrap(),
            _ = &mut stopped => break,
        };
        let client = request.get(0).unwrap().clone();
        assert!(request.get(1).unwrap().is_empty());
        let from = u64::from_be_bytes(request.get(2).unwrap().as_ref().try_into().unwrap());
        let mut all: Vec<_> = past
            .lock()
            .iter()
            .filter(|(number, _)| *number >= from)
            .cloned()
            .collect();
        all.push((u64::MAX, Vec::new()));
        for (number, payload) in all {
            let mut message = ZmqMessage::from(client.clone());
            message.push_back(Vec::new().into());
            message.push_back(b"kv".to_vec().into());
            message.push_back(number.to_be_bytes().to_vec().into());
            message.push_back(payload.into());
            if router.send(message).await.is_err() {
                break;
            }
        }
    }
    router.close().await;
}

/// Blocks of four tokens each that are there now.
pub fn stored(hashes: &[u64], parent: Option<u64>, tokens: std::ops::Range<u32>) -> Value {
    json!({
        "type": "BlockStored", "block_hashes": hashes, "parent_block_hash": parent,
        "token_ids": tokens.collect::<Vec<u32>>(), "block_size": 4, "lora_id": null, "medium": "GPU",
        "lora_name": null, "group_idx": 0, "session_id": "s",
    })
}

pub fn removed(hashes: &[u64]) -> Value {
    json!({"type": "BlockRemoved", "block_hashes": hashes, "medium": "GPU"})
}

pub fn cleared() -> Value {
    json!({"type": "AllBlocksCleared"})
}
