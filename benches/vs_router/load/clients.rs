//! Clients that send the next request when the last answer has come.

use std::cell::RefCell;
use std::io::Result;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::task::LocalSet;
use tokio::time::sleep;

use crate::http::{Ending, call, connect, request};

/// Beginnings that prompts share.
const BEGINNINGS: usize = 32;
/// Bytes of a prompt that are its own.
const OWN_BYTES: usize = 64;
/// The pause before a connection that broke is opened again.
const RECONNECT_PAUSE: Duration = Duration::from_millis(5);

#[derive(Default)]
struct Tally {
    /// Milliseconds of each whole answer.
    times: Vec<f64>,
    lost: u64,
    broken: u64,
    /// The beginning of an answer that wasn't whole.
    example: Option<String>,
}

impl Tally {
    fn note(&mut self, ending: Ending, began: Instant, answer: &[u8]) {
        match ending {
            Ending::Whole => self.times.push(began.elapsed().as_secs_f64() * 1e3),
            Ending::Lost => self.lost += 1,
            Ending::Broken => self.broken += 1,
        }
        if ending != Ending::Whole && self.example.is_none() {
            let from = answer.len().saturating_sub(300);
            self.example = Some(String::from_utf8_lossy(&answer[from..]).into_owned());
        }
    }

    fn print(mut self, elapsed: Duration) {
        self.times.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let last = self.times.len().saturating_sub(1) as f64;
            self.times.get((last * share) as usize).copied()
        };
        let value = json!({
            "requests": self.times.len(),
            "rate": self.times.len() as f64 / elapsed.as_secs_f64(),
            "p50_ms": at(0.5),
            "p99_ms": at(0.99),
            "max_ms": at(1.0),
            "lost": self.lost,
            "broken": self.broken,
            "example": self.example,
        });
        println!("{value}");
    }
}

/// Requests of one client: each prompt begins like some others' and ends by itself.
struct Prompts {
    client: usize,
    next: usize,
    bytes: usize,
}

impl Prompts {
    fn next(&mut self) -> String {
        let turn = self.next;
        self.next += 1;
        let beginning = (self.client * 7 + turn) % BEGINNINGS;
        let shared = format!("Beginning {beginning} of a prompt about mountains. ");
        let own = format!("{:0width$}", self.client * 1_000_000 + turn, width = OWN_BYTES);
        let mut prompt = shared.repeat(self.bytes.saturating_sub(OWN_BYTES) / shared.len());
        prompt.push_str(&own);
        prompt
    }
}

fn streamed(prompt: &str) -> Vec<u8> {
    request(&format!(
        r#"{{"model":"m","prompt":"{prompt}","max_tokens":16,"stream":true}}"#
    ))
}

fn kept(prompt: &str) -> Vec<u8> {
    request(&format!(
        r#"{{"kv_transfer_params":{{"do_remote_decode":true}},"model":"m","prompt":"{prompt}","max_tokens":1}}"#
    ))
}

/// Keeps that many connections busy and prints what came of it.
pub async fn drive(
    address: SocketAddr,
    connections: usize,
    duration: Duration,
    prompt_bytes: usize,
) -> Result<()> {
    let tally = Rc::new(RefCell::new(Tally::default()));
    let begin = Instant::now();
    let clients = LocalSet::new();
    for client in 0..connections {
        let tally = Rc::clone(&tally);
        clients.spawn_local(async move {
            let mut prompts = Prompts {
                client,
                next: 0,
                bytes: prompt_bytes,
            };
            let mut buffer = Vec::new();
            while begin.elapsed() < duration {
                let Ok(mut stream) = connect(address).await else {
                    sleep(RECONNECT_PAUSE).await;
                    continue;
                };
                while begin.elapsed() < duration {
                    let request = streamed(&prompts.next());
                    let began = Instant::now();
                    let ending = call(&mut stream, &request, &mut buffer).await;
                    tally.borrow_mut().note(ending, began, &buffer);
                    if ending != Ending::Whole {
                        break;
                    }
                }
            }
        });
    }
    clients.await;
    tally.take().print(begin.elapsed());
    Ok(())
}

/// A prefill and a decode, again and again over two connections; times are of both together.
pub async fn direct(addresses: [SocketAddr; 2], duration: Duration, prompt_bytes: usize) -> Result<()> {
    let mut prefill = connect(addresses[0]).await?;
    let mut decode = connect(addresses[1]).await?;
    let mut prompts = Prompts {
        client: 0,
        next: 0,
        bytes: prompt_bytes,
    };
    let (mut tally, mut buffer) = (Tally::default(), Vec::new());
    let begin = Instant::now();
    while begin.elapsed() < duration {
        let prompt = prompts.next();
        let (first, second) = (kept(&prompt), streamed(&prompt));
        let began = Instant::now();
        let mut ending = call(&mut prefill, &first, &mut buffer).await;
        if ending == Ending::Whole {
            ending = call(&mut decode, &second, &mut buffer).await;
        }
        tally.note(ending, began, &buffer);
    }
    tally.print(begin.elapsed());
    Ok(())
}
