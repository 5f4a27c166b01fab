//! Load on the proxy with scripted instances, all in this process: requests per second, time added, memory of streams.
//!
//! `cargo bench -p kvstored-proxy -- [--connections 64] [--seconds 5] [--streams 1000]`
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, clippy::disallowed_methods)] // a tool for developers

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use kvstored_core::Runtime;
use kvstored_proxy::{ProxyArguments, ProxyServer, Settings};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

#[derive(Parser)]
struct Options {
    /// Connections of clients
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// How long to measure
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Streams held at once for the memory figure
    #[arg(long, default_value_t = 1000)]
    streams: usize,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Parser)]
struct Proxy {
    #[command(flatten)]
    arguments: ProxyArguments,
}

const EVENTS: usize = 16;
const BODY: &str = r#"{"model":"m","prompt":"Say something about the weather in the mountains today","max_tokens":16,"stream":true}"#;

fn main() {
    let options = Options::parse();
    let gate = Arc::new(Semaphore::new(Semaphore::MAX_PERMITS >> 4));
    let mocks: Vec<SocketAddr> = (0..4).map(|_| start_mock(Arc::clone(&gate))).collect();
    let proxy = start_proxy(&mocks);
    let client = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    client.block_on(async {
        let direct = one_by_one(options.seconds, &[mocks[0], mocks[2]]).await;
        let through = one_by_one(options.seconds, &[proxy]).await;
        for (name, at) in [("p50", 0.5), ("p99", 0.99)] {
            let (direct, through) = (quantile(&direct, at), quantile(&through, at));
            println!(
                "1 connection {name}: two direct calls {direct:.3} ms, proxy {through:.3} ms, added {:.3} ms",
                through - direct
            );
        }
        let rate = many(options.connections, options.seconds, proxy).await;
        println!("{} connections: {rate:.0} requests/s", options.connections);
        println!(
            "resident memory: {:.1} MB (mocks and clients included)",
            resident_bytes() / 1e6
        );
        held(&options, &gate, proxy).await;
    });
}

fn start_proxy(mocks: &[SocketAddr]) -> SocketAddr {
    let mut words = vec!["proxy".to_owned(), "--port".to_owned(), "0".to_owned()];
    for (role, mocks) in [("prefiller", &mocks[..2]), ("decoder", &mocks[2..])] {
        words.push(format!("--{role}-hosts"));
        words.extend(mocks.iter().map(|mock| mock.ip().to_string()));
        words.push(format!("--{role}-ports"));
        words.extend(mocks.iter().map(|mock| mock.port().to_string()));
    }
    let settings = Settings::new(&Proxy::parse_from(words).arguments).unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let executor = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        executor.block_on(async {
            let server = ProxyServer::bind(settings, Runtime::system()).unwrap();
            tell.send(server.address()).unwrap();
            server.serve().await;
        });
    });
    told.recv().unwrap()
}

/// An instance that plays both roles; it ends a stream only while the gate has a permit.
fn start_mock(gate: Arc<Semaphore>) -> SocketAddr {
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let executor = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        executor.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            tell.send(listener.local_addr().unwrap()).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                tokio::spawn(mock_connection(stream, Arc::clone(&gate)));
            }
        });
    });
    told.recv().unwrap()
}

async fn mock_connection(mut stream: TcpStream, gate: Arc<Semaphore>) {
    let transfer = r#"{"choices":[{"text":"x"}],"kv_transfer_params":{"do_remote_prefill":true,"remote_block_ids":[1,2,3],"remote_host":"h","remote_port":1}}"#;
    let prefill = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{transfer}",
        transfer.len()
    );
    let event = "data: {\"id\":\"cmpl-1\",\"object\":\"text_completion\",\"model\":\"m\",\"choices\":[{\"index\":0,\"text\":\" word\",\"stop_reason\":null}]}\n\n";
    let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    let begin = format!("{head}{}", chunk(event));
    let rest = chunk(event).repeat(EVENTS - 1) + &chunk("data: [DONE]\n\n") + "0\r\n\r\n";
    let mut buffer = Vec::with_capacity(4096);
    loop {
        buffer.clear();
        let Some(()) = read_request(&mut stream, &mut buffer).await else {
            return;
        };
        let has = |needle: &[u8]| memchr::memmem::find(&buffer, needle).is_some();
        let done = if has(b"GET /health") {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                .await
        } else if has(b"\"do_remote_decode\":true") {
            stream.write_all(prefill.as_bytes()).await
        } else {
            let _ = stream.write_all(begin.as_bytes()).await;
            drop(gate.acquire().await.unwrap());
            stream.write_all(rest.as_bytes()).await
        };
        if done.is_err() {
            return;
        }
    }
}

async fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<()> {
    loop {
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
        if let Some(head) = memchr::memmem::find(buffer, b"\r\n\r\n") {
            let text = std::str::from_utf8(&buffer[..head]).ok()?.to_ascii_lowercase();
            let length: usize = text
                .split("content-length: ")
                .nth(1)
                .map_or(0, |rest| rest.lines().next().unwrap().parse().unwrap());
            while buffer.len() < head + 4 + length {
                if stream.read_buf(buffer).await.ok()? == 0 {
                    return None;
                }
            }
            return Some(());
        }
    }
}

fn request(body: &str) -> String {
    format!(
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Sends one request and reads its answer to the end.
async fn call(stream: &mut TcpStream, request: &str, buffer: &mut Vec<u8>) {
    stream.write_all(request.as_bytes()).await.unwrap();
    buffer.clear();
    loop {
        assert!(stream.read_buf(buffer).await.unwrap() > 0, "closed");
        let whole = buffer.ends_with(b"\r\n0\r\n\r\n") || buffer.ends_with(b"}}");
        if whole {
            break;
        }
    }
    assert!(
        buffer.starts_with(b"HTTP/1.1 200"),
        "{}",
        String::from_utf8_lossy(buffer)
    );
}

/// Times in milliseconds of calls one after the other; with two addresses, of a prefill and a decode.
async fn one_by_one(seconds: u64, addresses: &[SocketAddr]) -> Vec<f64> {
    let mut streams = Vec::new();
    for address in addresses {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        streams.push(stream);
    }
    let keep = BODY.replacen('{', r#"{"kv_transfer_params":{"do_remote_decode":true},"#, 1);
    let requests = [request(&keep), request(BODY)];
    let requests = &requests[2 - streams.len()..];
    let mut buffer = Vec::new();
    let mut times = Vec::new();
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        let begin = Instant::now();
        for (stream, request) in streams.iter_mut().zip(requests) {
            call(stream, request, &mut buffer).await;
        }
        times.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    times
}

fn quantile(sorted: &[f64], at: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * at) as usize]
}

async fn many(connections: usize, seconds: u64, proxy: SocketAddr) -> f64 {
    let count = Arc::new(AtomicU64::new(0));
    let begin = Instant::now();
    let end = begin + Duration::from_secs(seconds);
    let clients: Vec<_> = (0..connections)
        .map(|_| {
            let count = Arc::clone(&count);
            tokio::spawn(async move {
                let mut stream = TcpStream::connect(proxy).await.unwrap();
                stream.set_nodelay(true).unwrap();
                let request = request(BODY);
                let mut buffer = Vec::new();
                while Instant::now() < end {
                    call(&mut stream, &request, &mut buffer).await;
                    count.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    count.load(Ordering::Relaxed) as f64 / begin.elapsed().as_secs_f64()
}

/// Streams that have begun and don't end: what each takes of this process's memory, both ends and the proxy's two.
async fn held(options: &Options, gate: &Arc<Semaphore>, proxy: SocketAddr) {
    let all = gate.available_permits() as u32;
    let closed = gate.acquire_many(all).await.unwrap();
    let before = resident_bytes();
    let request = request(BODY);
    let mut streams = Vec::with_capacity(options.streams);
    let mut buffer = vec![0; 256];
    for _ in 0..options.streams {
        let mut stream = TcpStream::connect(proxy).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        assert!(stream.read(&mut buffer).await.unwrap() > 0);
        streams.push(stream);
    }
    let each = (resident_bytes() - before) / options.streams as f64 / 1024.0;
    println!(
        "{} streams held: {each:.1} KiB each (mocks and clients included)",
        options.streams
    );
    drop(closed);
    for stream in &mut streams {
        let mut text = Vec::new();
        while !text.ends_with(b"\r\n0\r\n\r\n") {
            assert!(stream.read_buf(&mut text).await.unwrap() > 0);
        }
    }
}

fn resident_bytes() -> f64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: f64 = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096.0
}
