use super::child::{BYTES, Process, Server};
use super::rig::*;
use crate::*;
use kvstored_core::Runtime;
use std::io::{Read, Write};
use std::time::Duration;

fn cpu(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let rest = stat.rsplit_once(')').unwrap().1;
    let f: Vec<&str> = rest.split_whitespace().collect();
    (f[11].parse::<f64>().unwrap() + f[12].parse::<f64>().unwrap()) / 100.0
}

fn measure(name: &str, pid: u32, bytes: u64, mut go: impl FnMut()) {
    let rt = Runtime::system();
    let me = std::process::id();
    go();
    let (a, b) = (cpu(me), cpu(pid));
    let start = rt.clock.now();
    let mut n = 0u64;
    let mut lat = Vec::new();
    let mut last = start;
    while last.duration_since(start) < Duration::from_millis(1000) {
        go();
        n += 1;
        let now = rt.clock.now();
        lat.push(now.duration_since(last));
        last = now;
    }
    let secs = last.duration_since(start).as_secs_f64();
    lat.sort();
    let gb = (bytes * n) as f64 / 1e9;
    let (ca, cb) = (cpu(me) - a, cpu(pid) - b);
    println!(
        "{name:28} {:6.2} GB/s p50 {:8.1} us cpu/GB {:.3} (ask {:.3} serve {:.3})",
        gb / secs,
        lat[lat.len() / 2].as_secs_f64() * 1e6,
        (ca + cb) / gb,
        ca / gb,
        cb / gb
    );
}

fn over_kind() -> TransportKind {
    std::env::var("OVERK").map_or(TransportKind::Tcp, |k| k.parse().unwrap())
}

pub fn raw_serve() {
    let l = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    println!("answer {}", l.local_addr().unwrap());
    let (mut s, _) = l.accept().unwrap();
    s.set_nodelay(true).unwrap();
    let mut buf = vec![1u8; BYTES];
    let mut h = [0u8; 16];
    while s.read_exact(&mut h).is_ok() {
        let kind = h[0];
        let n = u64::from_le_bytes(h[8..].try_into().unwrap()) as usize;
        if kind == 1 {
            let mut at = 0;
            while at < n {
                let e = (at + (1 << 20)).min(n);
                s.write_all(&buf[at..e]).unwrap();
                at = e;
            }
        } else {
            s.read_exact(&mut buf[..n]).unwrap();
            s.write_all(&[1]).unwrap();
        }
    }
}

#[test]
#[ignore]
fn speed() {
    let streams: usize = std::env::var("STREAMS").map_or(2, |s| s.parse().unwrap());
    let mut server = Server::start(over_kind());
    let mut settings = over(over_kind(), asking());
    settings.streams_per_peer = streams;
    let client = start(settings);
    let region = client.allocate(BYTES).unwrap();
    region.write(0, &vec![1; BYTES]).unwrap();
    let peer = client.open_peer(&server.address, soon()).unwrap();
    let granted = server.grant(client.identity());
    let spid = server.process.id();
    let mut raw = Process::start("raw", TransportKind::Tcp);
    let addr = raw.answer();
    let mut sock = std::net::TcpStream::connect(addr).unwrap();
    sock.set_nodelay(true).unwrap();
    let mut buf = vec![2u8; BYTES];
    for _ in 0..3 {
        for (size, count) in [
            (4096u64, 1u64),
            (4096, 128),
            (65536, 32),
            (1 << 20, 1),
            (1 << 20, 32),
        ] {
            for kind in [TransferKind::Read, TransferKind::Write] {
                if let Ok(only) = std::env::var("CASE") {
                    if only != format!("{kind:?}{size}x{count}") {
                        continue;
                    }
                }
                let total = (size * count) as usize;
                if std::env::var("NORAW").is_err() {
                    measure(
                        &format!("raw {kind:?} {size}x{count}"),
                        raw.id(),
                        total as u64,
                        || {
                            let mut h = [0u8; 16];
                            h[0] = if kind == TransferKind::Read { 1 } else { 2 };
                            h[8..].copy_from_slice(&(total as u64).to_le_bytes());
                            sock.write_all(&h).unwrap();
                            if kind == TransferKind::Read {
                                sock.read_exact(&mut buf[..total]).unwrap();
                            } else {
                                let mut at = 0;
                                while at < total {
                                    let e = (at + (1 << 20)).min(total);
                                    sock.write_all(&buf[at..e]).unwrap();
                                    at = e;
                                }
                                sock.read_exact(&mut [0]).unwrap();
                            }
                        },
                    );
                }
                measure(
                    &format!("ours {kind:?} {size}x{count}"),
                    spid,
                    total as u64,
                    || {
                        let entries = (0..count)
                            .map(|i| TransferEntry {
                                local: region.id(),
                                local_offset: i * size,
                                grant: granted,
                                remote_offset: i * size,
                                length: size,
                            })
                            .collect();
                        client
                            .submit(&peer, kind, entries, soon())
                            .unwrap()
                            .wait(soon())
                            .unwrap();
                    },
                );
            }
        }
    }
}
